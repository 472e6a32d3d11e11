package sqlscan

import "math/bits"

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

// A wordSum is a hash of a word, the same in any case, which the lexer adds up
// while it reads the word.
type wordSum uint64

func (sum wordSum) add(c byte) wordSum {
	return wordSum(bits.RotateLeft64(uint64(sum), 8)) ^ wordSum(c|0x20)
}

func sumOf(word string) (sum wordSum) {
	for i := range len(word) {
		sum = sum.add(word[i])
	}
	return sum
}

// keywordTable is a hash table of the key words. Each is in the first slot that
// was free from its hash on.
var keywordTable = func() (slots [numKeywordSlots]struct {
	sum wordSum
	kw  keyword
},
) {
	for kw := notKeyword + 1; int(kw) < len(keywordList); kw++ {
		sum := sumOf(kw.String())
		i := sum.slot()
		for slots[i].kw != notKeyword {
			i = (i + 1) % numKeywordSlots
		}
		slots[i].sum, slots[i].kw = sum, kw
	}
	return slots
}()

// numKeywordSlots is so large that most words, key words or not, need one look.
const numKeywordSlots = 1024

func (sum wordSum) slot() uint64 {
	return uint64(sum) * 0x9e3779b97f4a7c15 >> 54 // leaves the ten bits that number the slots
}

// keyword returns the key word that word, whose sum it is, is in some case, or
// notKeyword.
func (sum wordSum) keyword(word string) keyword {
	for i := sum.slot(); ; i = (i + 1) % numKeywordSlots {
		slot := &keywordTable[i]
		if slot.kw == notKeyword || slot.sum == sum && slot.kw.is(word) {
			return slot.kw
		}
	}
}

// lookupKeyword returns the key word that word is in some case, or notKeyword.
func lookupKeyword(word string) keyword { return sumOf(word).keyword(word) }

// is reports whether word is the key word in some case. Key words are made of
// ASCII letters, which differ from their capitals in one bit, and underscores.
func (k keyword) is(word string) bool {
	lower := k.String()
	if len(word) != len(lower) {
		return false
	}
	for i := range len(word) {
		if c := word[i]; c != lower[i] && c|0x20 != lower[i] {
			return false
		}
	}
	return true
}

// endsOperand holds the key words that can end an operand: values, types and the
// words people take for columns and aliases. No word belongs here that the
// grammar puts directly in front of an expression (BY, ZONE, VALUE, PATH…): a
// name before a parenthesis is not taken for a call when an operand ends there.
var endsOperand = wordSet(
	notKeyword,
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
	kw := lookupKeyword(name)
	p := columnParens[kw]
	return kw.String() == name && p.since != 0 && version >= p.since
}
