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
OUT         ?= .cache/bench
BENCH_OUT   ?= $(OUT)
SEED        ?= 0
DURATION    ?= 30m
SCHEDULES   ?= 1000000
LOADS       ?= 300
CLOSURES    ?= 200000
DRIVER      ?= auto
REPORT      ?= .cache/battery.md
JOBS        ?= 2
GO_OLD      := go1.26.8
GO_NEW      := go1.27.4
# Those that take longest come first.
MODULES     := integration integration/battery . integration/stacks bench
# Of the root package only the simulation has a short form.
MODULES_LONG := integration integration/battery .@.@Simulation .@./internal/... integration/stacks bench
# Tests that do not depend on the executor, and on the version of Go.
SAME_EXECUTOR := SimulationControls|AgainstParser|Company
SAME_GO       := $(SAME_EXECUTOR)|PgBouncer|Pgpool|Failover
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT     := mvdan.cc/gofumpt@v0.12.0

.PHONY: help modules demo test test-all test-long test-generic test-go test-matrix battery soak storm schedules loads coverage lint fuzz oracle tenants values arguments company closures extensions bench workloads workloads-full bench-profile bench-full microbench gate generate clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

modules: # for scripts
	@echo $(MODULES)

demo: ## show a stampede of reads, with and without flightpg
	@scripts/ensure-postgres
	$(GO) run ./examples/stampede

# What most changes need: slow tests do less of the same (testing.Short). The gate is
# without the race detector, which allocates, and so are the simulated loads, which are
# too much for it; go vet is of make lint.
test: ## run the tests of all modules, the slow ones in a short form (TESTFLAGS=-v)
	@scripts/ensure-postgres
	@echo "$(GO) test -short -count=1 -run '^TestGate$$' $(TESTFLAGS) ."
	@$(GO) test -short -count=1 -vet=off -run '^TestGate$$' $(TESTFLAGS) . || code=1; \
	$(GO) test -short -count=1 -vet=off -run '^TestLoads' $(TESTFLAGS) ./internal/pipeline || code=1; \
	GO="$(GO)" scripts/test -j $(JOBS) $(MODULES) -- -short -race -count=1 -vet=off -timeout 20m $(TESTFLAGS) || code=1; \
	exit $${code:-0}

# Nothing is run twice that is the same the second time: at their usual length run the
# packages that have a short form, on Docker's server if there is one; and the short forms
# with the other executor, and with the other version of Go.
test-all: ## make test, then everything at its usual length, and on both versions of Go (TESTFLAGS=-v)
	@$(MAKE) test || code=1; \
	! docker version >/dev/null 2>&1 || servers=testcontainers; \
	FLIGHTPG_TEST_SERVERS=$$servers $(MAKE) test-long MODULES='$(MODULES_LONG)' || code=1; \
	$(MAKE) test-generic TESTFLAGS="-short $(TESTFLAGS)" || code=1; \
	$(MAKE) test-go TESTFLAGS="-short $(TESTFLAGS)" || code=1; \
	exit $${code:-0}

test-long: ## run the tests of all modules at their usual length
	@scripts/ensure-postgres
	@GO="$(GO)" scripts/test -j $(JOBS) $(MODULES) -- -race -count=1 -timeout 30m $(TESTFLAGS)

test-generic: ## run the driver's tests and those with a real server with the generic executor
	@scripts/ensure-postgres
	@FLIGHTPG_TEST_SERVERS=pgtest PACKAGES=. GO="$(GO)" scripts/test -j $(JOBS) integration . -- -tags flightpg_generic -skip '$(SAME_EXECUTOR)' -race -count=1 -timeout 30m $(TESTFLAGS)

# database/sql has changed with Go 1.27, and so has the driver: see rows_go1.27.go.
# The libraries and the container are the same.
test-go: ## run the driver's tests and those with a real server on the other version of Go
	@case $$($(GO) env GOVERSION) in go1.2[0-6]*) other=$(GO_NEW) ;; *) other=$(GO_OLD) ;; esac; \
	echo "GOTOOLCHAIN=$$other"; \
	GOTOOLCHAIN=$$other FLIGHTPG_TEST_SERVERS=pgtest $(MAKE) -k gate test-long MODULES='integration .' TESTFLAGS="-skip '$(SAME_GO)' $(TESTFLAGS)"

test-matrix: ## run the tests on PostgreSQL 15, 16, 17 and 18, and through PgBouncer (VERSIONS="17 18")
	scripts/test-matrix $(VERSIONS)

battery: ## try to break flightpg, at full length, in up to an hour (SEED= REPORT=.cache/battery.md)
	@scripts/ensure-postgres
	cd integration/battery && $(GO) run . -seed $(SEED) -o $(abspath $(REPORT))

soak: ## mixed load and faults for a while, with a live report (DURATION=30m SEED=)
	@scripts/ensure-postgres
	cd integration/battery && $(GO) run ./soak -duration $(DURATION) $(if $(filter-out 0,$(SEED)),-seed $(SEED)) -o $(abspath .cache/soak.txt)

schedules: ## a million random schedules of the pipeline, in up to an hour (SCHEDULES=1000000 SEED=)
	$(if $(filter-out 0,$(SEED)),FLIGHTPG_SEED=$(SEED)) FLIGHTPG_SCHEDULES=$(SCHEDULES) \
	$(GO) test -count=1 -timeout 6h -v -run '^TestSimulation$$' ./internal/pipeline

loads: ## the pipeline beside a model of pgx under loads at random, in a simulation (LOADS=300 SEED=)
	$(if $(filter-out 0,$(SEED)),FLIGHTPG_SEED=$(SEED)) FLIGHTPG_LOADS=$(LOADS) \
	$(GO) test -count=1 -timeout 6h -v -run '^TestLoads$$' ./internal/pipeline

storm: VERSIONS = 15 18
storm: ## flightpg beside pgx through DDL, locks and bad networks (DURATION=30m VERSIONS="15 18" SEED= DRIVER=auto)
	GO="$(GO)" scripts/storm .cache/storm.txt $(VERSIONS) -- -duration $(DURATION) -driver $(DRIVER) $(if $(filter-out 0,$(SEED)),-seed $(SEED))

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

tenants: ## two million reads of 64 tenants, and 400,000 more through the doors for hooks, every row its reader's
	@scripts/ensure-postgres
	FLIGHTPG_TENANT_READS=2000000 $(GO) test -timeout 60m -run TestTenants -v .
	FLIGHTPG_TENANT_READS=400000 $(GO) test -timeout 60m -run TestDoors -v .

values: ## every type's values into every scan destination, as pgx scans them
	@scripts/ensure-postgres
	cd integration && FLIGHTPG_VALUES=1000 $(GO) test -timeout 60m -run 'TestValues$$' -v .

arguments: ## 1.2 million pairs of arguments: their keys, and what pgx sends for them (FLIGHTPG_SEED=)
	@scripts/ensure-postgres
	FLIGHTPG_ARGUMENTS=1200000 $(GO) test -timeout 60m -run '^TestArguments' -v .

company: ## 100,000 statements in databases whose functions tell when they run (FLIGHTPG_SEED=)
	@scripts/ensure-postgres
	cd integration && FLIGHTPG_COMPANY_N=100000 $(GO) test -timeout 60m -run 'TestCompany_Oracle$$' -v .

closures: ## 200,000 statements over schemas at random, held to what the server calls (CLOSURES=, FLIGHTPG_SEED=)
	@scripts/ensure-postgres
	FLIGHTPG_CLOSURES=$(CLOSURES) $(GO) test -count=1 -timeout 3h -run '^TestClosures$$' -v ./internal/judge

extensions: ## what each extension that Debian has makes flightpg bypass (root only, installs packages; docs/extensions.md)
	GO="$(GO)" scripts/extensions -o docs/extensions.md

bench: ## flightpg beside pgx and others, in up to 10 minutes (BENCH_OUT=.cache/bench BENCHFLAGS=)
	@scripts/ensure-postgres
	cd bench && $(GO) run . -o $(abspath $(BENCH_OUT)) $(BENCHFLAGS)

bench-profile: ## whose code an operation's CPU time goes to, in four minutes (BENCH_OUT=.cache/bench)
	@scripts/ensure-postgres
	cd bench && $(GO) run . -profile -budget 4m -rounds 9 -o $(abspath $(BENCH_OUT)) $(BENCHFLAGS)

bench-full: ## the same with all combinations, in about 2 hours
	@scripts/ensure-postgres
	cd bench && $(GO) run . -full -budget 2h -o $(abspath $(BENCH_OUT)) $(BENCHFLAGS)

workloads: ## flightpg beside pgx where nothing is shared, in less than 6 minutes (BENCH_OUT=.cache/bench BENCHFLAGS=)
	@scripts/ensure-postgres
	cd bench && $(GO) run . matrix -o $(abspath $(BENCH_OUT)) $(BENCHFLAGS)

workloads-full: ## the same with all workloads, in an hour
	@scripts/ensure-postgres
	cd bench && $(GO) run . matrix -full -o $(abspath $(BENCH_OUT)) $(BENCHFLAGS)

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
