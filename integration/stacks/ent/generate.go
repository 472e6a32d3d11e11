// Package ent tests flightpg under ent.
package ent

//go:generate go tool ent generate --target gen --feature sql/lock ./schema
