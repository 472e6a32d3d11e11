//go:build go1.27

package isolation

// Since Go 1.27 pgx scans by itself into destinations that database/sql does not
// know, and gives them the server's bytes, uncopied.

func init() {
	wireDests = append(wireDests, func() dest {
		b := new(bytesKeeper)
		return dest{"pgtype.BytesScanner", b, func() []byte { return *b }, false}
	}, func() dest {
		p := new(*bytesKeeper)
		return dest{"**pgtype.BytesScanner", p, func() []byte {
			if *p == nil {
				return nil
			}
			return **p
		}, false}
	})
}

// bytesKeeper is a pgtype.BytesScanner that keeps what it is given, as it must not
// but some do.
type bytesKeeper []byte

// ScanBytes implements pgtype.BytesScanner.
func (k *bytesKeeper) ScanBytes(v []byte) error {
	*k = v
	return nil
}
