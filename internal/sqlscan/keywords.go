package sqlscan

// A keyword is an unquoted SQL key word, in any case. The list is generated from
// servers, like that of the built-in functions.
type keyword uint16

// A category is PostgreSQL's division of its key words (appendix "SQL Key
// Words"); it decides what an unquoted word may name.
type category uint8

const (
	noCategory   category = iota
	unreserved            // may name anything
	columnName            // may name columns and tables, but no function or type
	functionName          // may name functions and types, but no column or table
	reserved              // may only be a label behind AS or a name behind a dot
)

func (k keyword) String() string { return keywordList[k].word }

// endsOperand holds the key words that can end an operand: values, types and the
// words people take for columns and aliases. No word belongs here that the
// grammar puts directly in front of an expression (BY, ZONE, VALUE, PATH…): a
// name before a parenthesis is not taken for a call when an operand ends there.
var endsOperand = wordSet(
	// values
	kwNull, kwTrue, kwFalse, kwEnd, kwUser, kwCurrentUser, kwSessionUser, kwSystemUser, kwCurrentRole,
	kwCurrentCatalog, kwCurrentSchema, kwCurrentDate, kwCurrentTime, kwCurrentTimestamp, kwLocaltime,
	kwLocaltimestamp,
	// types
	kwBigint, kwBit, kwBoolean, kwChar, kwCharacter, kwDec, kwDecimal, kwFloat, kwInt, kwInteger, kwInterval,
	kwJson, kwNational, kwNchar, kwNumeric, kwPrecision, kwReal, kwSmallint, kwTime, kwTimestamp, kwVarchar,
	kwVarying, kwText,
	// columns and aliases
	kwAccess, kwAction, kwAttribute, kwCache, kwCatalog, kwClass, kwComment, kwComments, kwConfiguration,
	kwConnection, kwCost, kwCurrent, kwCursor, kwData, kwDatabase, kwDay, kwDepth, kwDictionary, kwDomain,
	kwEncoding, kwError, kwEvent, kwExtension, kwFamily, kwFunction, kwFunctions, kwHandler, kwHeader, kwHour,
	kwIdentity, kwImport, kwIncrement, kwIndex, kwIndexes, kwInput, kwKey, kwKeys, kwLabel, kwLanguage,
	kwLarge, kwLast, kwLevel, kwLocation, kwLock, kwLocked, kwLogged, kwMapping, kwMatch, kwMaxvalue,
	kwMethod, kwMinute, kwMinvalue, kwMode, kwMonth, kwMove, kwName, kwNames, kwNew, kwNotify, kwObject,
	kwObjects, kwOld, kwOption, kwOptions, kwOwner, kwParameter, kwParser, kwPassword, kwPeriod, kwPolicy,
	kwPosition, kwProcedure, kwProgram, kwPublication, kwRelease, kwReplica, kwReset, kwRole, kwRule,
	kwScalar, kwSchema, kwSchemas, kwSecond, kwSequence, kwServer, kwSession, kwShare, kwSnapshot, kwSource,
	kwStart, kwStatement, kwStatistics, kwStorage, kwString, kwSubscription, kwSupport, kwSystem, kwTables,
	kwTarget, kwTemplate, kwTransaction, kwTransform, kwTrigger, kwType, kwTypes, kwUnknown, kwView, kwViews,
	kwYear,
)

func wordSet(words ...keyword) (set [len(keywordList)]bool) {
	for _, w := range words {
		set[w] = true
	}
	return set
}

// A parens says what a parenthesis behind a column-name key word is.
type parens struct {
	frame frameKind
	since int // first major version; 0: all
}

// columnParens holds the column-name key words that take a parenthesis. The
// functions among them have a syntax of their own and always mean PostgreSQL's;
// TREAT is missing on purpose: it calls the function named like its type.
var columnParens = map[keyword]parens{
	kwBetween: {frame: plain}, kwExists: {frame: plain}, kwRow: {frame: plain}, kwValues: {frame: plain},

	kwBit: {frame: plain}, kwChar: {frame: plain}, kwCharacter: {frame: plain}, kwDec: {frame: plain},
	kwDecimal: {frame: plain}, kwFloat: {frame: plain}, kwInterval: {frame: plain}, kwNchar: {frame: plain},
	kwNumeric: {frame: plain}, kwTime: {frame: plain}, kwTimestamp: {frame: plain}, kwVarchar: {frame: plain},

	kwCoalesce: {frame: call}, kwExtract: {frame: call}, kwGreatest: {frame: call}, kwGrouping: {frame: call},
	kwLeast: {frame: call}, kwNormalize: {frame: call}, kwNullif: {frame: call}, kwOverlay: {frame: forArgs},
	kwPosition: {frame: call}, kwSubstring: {frame: forArgs}, kwTrim: {frame: call},

	kwXmlattributes: {frame: plain}, kwXmlconcat: {frame: call}, kwXmlelement: {frame: call},
	kwXmlexists: {frame: call}, kwXmlforest: {frame: call}, kwXmlnamespaces: {frame: plain},
	kwXmlparse: {frame: call}, kwXmlpi: {frame: call}, kwXmlroot: {frame: call},
	kwXmlserialize: {frame: call}, kwXmltable: {frame: call},

	kwJsonObject: {frame: call}, kwJson: {frame: call}, // functions of the same names before
	kwJsonArray: {call, 16}, kwJsonArrayagg: {call, 16}, kwJsonObjectagg: {call, 16},
	kwJsonExists: {call, 17}, kwJsonQuery: {call, 17}, kwJsonScalar: {call, 17}, kwJsonSerialize: {call, 17},
	kwJsonTable: {call, 17}, kwJsonValue: {call, 17}, kwMergeAction: {call, 17},
}
