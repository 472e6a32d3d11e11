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
	kwObjects, kwOld, kwOption, kwOptions, kwOrdinality, kwOwner, kwParameter, kwParser, kwPassword, kwPeriod, kwPolicy,
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
	since int // first major version; 0: none has it
	frame frameKind
}

// columnParens holds the column-name key words that take a parenthesis. The
// functions among them have a syntax of their own and always mean PostgreSQL's.
// TREAT is missing on purpose: it calls the function named like its type.
var columnParens = [len(keywordList)]parens{
	kwBetween: {15, plain}, kwExists: {15, plain}, kwRow: {15, plain}, kwValues: {15, plain},

	kwBit: {15, plain}, kwChar: {15, plain}, kwCharacter: {15, plain}, kwDec: {15, plain},
	kwDecimal: {15, plain}, kwFloat: {15, plain}, kwInterval: {15, plain}, kwNchar: {15, plain},
	kwNumeric: {15, plain}, kwTime: {15, plain}, kwTimestamp: {15, plain}, kwVarchar: {15, plain},

	kwCoalesce: {15, call}, kwExtract: {15, call}, kwGreatest: {15, call}, kwGrouping: {15, call},
	kwLeast: {15, call}, kwNormalize: {15, call}, kwNullif: {15, call}, kwOverlay: {15, forArgs},
	kwPosition: {15, call}, kwSubstring: {15, forArgs}, kwTrim: {15, call},

	kwXmlattributes: {15, plain}, kwXmlconcat: {15, call}, kwXmlelement: {15, call},
	kwXmlexists: {15, call}, kwXmlforest: {15, call}, kwXmlnamespaces: {15, plain},
	kwXmlparse: {15, call}, kwXmlpi: {15, call}, kwXmlroot: {15, call},
	kwXmlserialize: {15, castArgs}, kwXmltable: {15, call},

	kwJson: {15, call}, kwJsonObject: {15, call}, // functions of the same names before 16
	kwJsonArray: {16, call}, kwJsonArrayagg: {16, call}, kwJsonObjectagg: {16, call},
	kwJsonExists: {17, call}, kwJsonQuery: {17, call}, kwJsonScalar: {17, call},
	kwJsonSerialize: {17, call}, kwJsonTable: {17, call}, kwJsonValue: {17, call},
	kwMergeAction: {17, call},
}

// FunctionSyntax reports whether the grammar of that major version takes a call
// of name, unquoted, for a syntax of its own.
func FunctionSyntax(name string, version int) bool {
	p := columnParens[lookupKeyword(name)]
	return p.since != 0 && version >= p.since
}
