package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/flightpg/flightpg"
)

// shop answers requests. It is plain database/sql.
type shop struct {
	db  *sql.DB
	log *slog.Logger
}

func (s *shop) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products/{id}", s.product)
	mux.HandleFunc("POST /products/{id}/buy", s.buy)
	mux.HandleFunc("GET /stats", s.stats)
	return withTimeout(mux)
}

// withTimeout ends the context of each request. It ends as well when the client
// goes away: a shared read goes on for those who still wait for it.
func withTimeout(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

type product struct {
	ID         int     `json:"id"`
	Name       string  `json:"name"`
	PriceCents int     `json:"price_cents"`
	Stock      int     `json:"stock"`
	Reviews    int     `json:"reviews"`
	Stars      float64 `json:"stars"`
}

// product is the hot page.
func (s *shop) product(w http.ResponseWriter, r *http.Request) {
	id, ok := productID(w, r)
	if !ok {
		return
	}
	var p product
	err := s.db.QueryRowContext(r.Context(), `
		select p.id, p.name, p.price_cents, p.stock, count(r.stars), coalesce(round(avg(r.stars), 2), 0)
		from products p left join reviews r on r.product_id = p.id
		where p.id = $1
		group by p.id`, id,
	).Scan(&p.ID, &p.Name, &p.PriceCents, &p.Stock, &p.Reviews, &p.Stars)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, http.StatusOK, p)
}

type order struct {
	ID        int64 `json:"id"`
	ProductID int   `json:"product_id"`
}

// errSoldOut is an answer, not a failure.
var errSoldOut = errors.New("sold out")

// buy takes one piece from the stock.
func (s *shop) buy(w http.ResponseWriter, r *http.Request) {
	id, ok := productID(w, r)
	if !ok {
		return
	}
	o, err := s.placeOrder(r.Context(), id)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, http.StatusCreated, o)
}

func (s *shop) placeOrder(ctx context.Context, productID int) (o order, err error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return o, err
	}
	defer tx.Rollback() // does nothing after Commit

	var stock int
	err = tx.QueryRowContext(ctx, `select stock from products where id = $1 for update`, productID).Scan(&stock)
	if err != nil {
		return o, err
	}
	if stock == 0 {
		return o, errSoldOut
	}
	if _, err = tx.ExecContext(ctx, `update products set stock = stock - 1 where id = $1`, productID); err != nil {
		return o, err
	}
	o.ProductID = productID
	err = tx.QueryRowContext(ctx, `insert into orders (product_id) values ($1) returning id`, productID).Scan(&o.ID)
	if err != nil {
		return o, err
	}
	return o, tx.Commit()
}

// stats tells what flightpg does. Do not show it to everybody.
func (s *shop) stats(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, http.StatusOK, flightpg.ReadStats(s.db))
}

func productID(w http.ResponseWriter, r *http.Request) (id int, ok bool) {
	n, err := strconv.ParseInt(r.PathValue("id"), 10, 32)
	if err != nil {
		http.NotFound(w, r)
		return 0, false
	}
	return int(n), true
}

func (s *shop) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, sql.ErrNoRows):
		status = http.StatusNotFound
	case errors.Is(err, errSoldOut):
		status = http.StatusConflict
	case r.Context().Err() != nil, errors.Is(err, context.DeadlineExceeded):
		// Too slow, or nobody is there to read this.
		status = http.StatusServiceUnavailable
	default:
		s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	http.Error(w, http.StatusText(status), status)
}

func (s *shop) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Warn("write answer", "error", err)
	}
}
