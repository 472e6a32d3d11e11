# Everything runs as it does for users and in CI: each module by its own go.mod.
# go.work is for editors.
export GOWORK := off

GO          ?= go
TESTFLAGS   ?=
FUZZTIME    ?= 30s
VERSIONS    ?= 15 16 17 18
ORACLE_N    ?= 50000000
BENCH       ?= .
BENCHFLAGS  ?=
BENCH_OUT   ?= .cache/bench
SEED        ?= 0
DURATION    ?= 30m
REPORT      ?= .cache/battery.md
JOBS        ?= 2
GO_OLD      := go1.26.8
GO_NEW      := go1.27.4
# Those that take longest come first.
MODULES     := integration integration/battery . integration/stacks bench
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0

.PHONY: help modules demo test test-all test-long test-generic test-go test-matrix battery soak coverage lint fuzz oracle tenants values arguments bench bench-profile bench-full microbench gate generate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

modules: # for scripts
	@echo $(MODULES)

demo: ## show a stampede of reads, with and without flightpg
	@scripts/ensure-postgres
	$(GO) run ./examples/stampede

# What most changes need: slow tests do less of the same (testing.Short). The gate is
# without the race detector, which allocates; go vet is of make lint.
test: ## run the tests of all modules, the slow ones in a short form (TESTFLAGS=-v)
	@scripts/ensure-postgres
	@echo "$(GO) test -short -count=1 -run '^TestGate$$' $(TESTFLAGS) ."
	@$(GO) test -short -count=1 -vet=off -run '^TestGate$$' $(TESTFLAGS) . || code=1; \
	GO="$(GO)" scripts/test -j $(JOBS) $(MODULES) -- -short -race -count=1 -vet=off -timeout 20m $(TESTFLAGS) || code=1; \
	exit $${code:-0}

test-all: ## make test, then everything at its usual length, and on both versions of Go (TESTFLAGS=-v)
	@$(MAKE) test || code=1; \
	$(MAKE) test-long || code=1; \
	$(MAKE) test-generic || code=1; \
	$(MAKE) test-go || code=1; \
	exit $${code:-0}

test-long: ## run the tests of all modules at their usual length
	@scripts/ensure-postgres
	@GO="$(GO)" scripts/test -j $(JOBS) $(MODULES) -- -race -count=1 -timeout 30m $(TESTFLAGS)

test-generic: ## run the driver's tests and those with a real server with the generic executor
	@scripts/ensure-postgres
	@FLIGHTPG_TEST_SERVERS=pgtest PACKAGES=. GO="$(GO)" scripts/test -j $(JOBS) integration . -- -tags flightpg_generic -skip SimulationControls -race -count=1 -timeout 30m $(TESTFLAGS)

# database/sql has changed with Go 1.27, and so has the driver: see rows_go1.27.go.
# The libraries and the container are the same.
test-go: ## run the driver's tests and those with a real server on the other version of Go
	@case $$($(GO) env GOVERSION) in go1.2[0-6]*) other=$(GO_NEW) ;; *) other=$(GO_OLD) ;; esac; \
	echo "GOTOOLCHAIN=$$other"; \
	GOTOOLCHAIN=$$other FLIGHTPG_TEST_SERVERS=pgtest $(MAKE) -k gate test-long MODULES='integration .' TESTFLAGS='-skip SimulationControls $(TESTFLAGS)'

test-matrix: ## run the tests on PostgreSQL 15, 16, 17 and 18, and through PgBouncer (VERSIONS="17 18")
	scripts/test-matrix $(VERSIONS)

battery: ## try to break flightpg, at full length, in up to an hour (SEED= REPORT=.cache/battery.md)
	@scripts/ensure-postgres
	cd integration/battery && $(GO) run . -seed $(SEED) -o $(abspath $(REPORT))

soak: ## mixed load and faults for a while, with a live report (DURATION=30m SEED=)
	@scripts/ensure-postgres
	cd integration/battery && $(GO) run ./soak -duration $(DURATION) $(if $(filter-out 0,$(SEED)),-seed $(SEED)) -o $(abspath .cache/soak.txt)

coverage: ## which statements of the driver the tests of all modules execute
	@scripts/ensure-postgres
	scripts/coverage -o .cache/coverage.txt

lint: ## vet, staticcheck and gofumpt
	@for module in $(MODULES); do \
		echo "lint $$module"; \
		(cd $$module && $(GO) vet ./... && $(GO) run $(STATICCHECK) ./...) || code=1; \
	done; \
	files=$$($(GO) run $(GOFUMPT) -l .) || code=1; \
	[ -z "$$files" ] || { echo "not formatted by gofumpt:"; echo "$$files"; code=1; }; \
	exit $${code:-0}

fuzz: ## fuzz each target for a while (FUZZTIME=30s)
	@$(GO) list -f '{{.ImportPath}}' ./... | while read -r package; do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$(GO) test -run ^$$ -fuzz ^$$target$$ -fuzztime $(FUZZTIME) $$package"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
		done || exit 1; \
	done

oracle: ## hold the scanner to PostgreSQL's parser, 50 million statements (ORACLE_N=, FLIGHTPG_SEED=)
	@scripts/ensure-postgres
	cd integration && FLIGHTPG_FUZZ_N=$(ORACLE_N) $(GO) test -timeout 6h -run 'TestScanAgainstParser$$' -v .

tenants: ## two million reads of 64 tenants, every row its reader's
	@scripts/ensure-postgres
	FLIGHTPG_TENANT_READS=2000000 $(GO) test -timeout 60m -run TestTenants -v .

values: ## every type's values into every scan destination, as pgx scans them
	@scripts/ensure-postgres
	cd integration && FLIGHTPG_VALUES=1000 $(GO) test -timeout 60m -run 'TestValues$$' -v .

arguments: ## 1.2 million pairs of arguments: their keys, and what pgx sends for them (FLIGHTPG_SEED=)
	@scripts/ensure-postgres
	FLIGHTPG_ARGUMENTS=1200000 $(GO) test -timeout 60m -run '^TestArguments' -v .

bench: ## flightpg beside pgx and others, in up to 10 minutes (BENCH_OUT=.cache/bench BENCHFLAGS=)
	@scripts/ensure-postgres
	cd bench && $(GO) run . -o $(abspath $(BENCH_OUT)) $(BENCHFLAGS)

bench-profile: ## whose code an operation's CPU time goes to, in four minutes (BENCH_OUT=.cache/bench)
	@scripts/ensure-postgres
	cd bench && $(GO) run . -profile -budget 4m -rounds 9 -o $(abspath $(BENCH_OUT)) $(BENCHFLAGS)

bench-full: ## the same with all combinations, in about 2 hours
	@scripts/ensure-postgres
	cd bench && $(GO) run . -full -budget 2h -o $(abspath $(BENCH_OUT)) $(BENCHFLAGS)

microbench: ## the benchmarks of single functions (BENCH=pattern)
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem ./...

gate: ## allocations, messages and goroutines for an operation, against the figures on record
	@scripts/ensure-postgres
	$(GO) test -count=1 -run '^TestGate$$' -v .

generate: ## write the generated files again
	@scripts/ensure-postgres
	$(GO) generate ./...

clean: ## remove what was built and downloaded
	rm -rf bin .cache
	find . -name '*.test' -o -name '*.prof' -o -name '*.out' | xargs rm -f
