# lfxd: AWS Lambda container functions on any Linux host, without Docker. `make help` lists the targets.
SHELL := /bin/sh
export PATH := $(PATH):/usr/local/go/bin

VERSION ?= $(shell cat VERSION)
BUILD   := $(CURDIR)/build
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

.DEFAULT_GOAL := help
.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: quickstart
quickstart: ## install what is missing, build, start lfxd, deploy and invoke the examples
	@sh contrib/quickstart/up.sh

.PHONY: down
down: ## stop what quickstart started and leave nothing behind but the data
	@sh contrib/quickstart/down.sh

.PHONY: clean-state
clean-state: down ## also remove the quick start's data
	@sh contrib/quickstart/down.sh --data

.PHONY: deps
deps: ## install the Debian packages that building needs
	@sh contrib/deps.sh build

.PHONY: build
build: ## build lfxd and lfxctl into build/bin and lfx-init beside the engine
	@mkdir -p $(BUILD)/bin $(BUILD)/engine
	@$(GOBUILD) -o $(BUILD)/bin/ ./cmd/lfxd ./cmd/lfxctl
	@$(GOBUILD) -o $(BUILD)/engine/lfx-init ./cmd/lfx-init

.PHONY: engine
engine: ## build the pinned containerd, runc, BuildKit and CNI plugins into build/engine
	@sh contrib/engine/build.sh $(BUILD)/engine

.PHONY: images
images: ## build the stand-in base images into build/images
	@sh contrib/images/build.sh $(BUILD)/images

.PHONY: examples
examples: ## build what the examples' Dockerfiles copy
	@$(MAKE) -s -C contrib/examples/lambda-go

.PHONY: test
test: ## run every test: unit, race, fuzz seeds, integration with the real engine (as root)
	@sh contrib/deps.sh build test
	@$(MAKE) -s engine build images examples check unit integration

.PHONY: unit
unit: ## unit tests with the race detector
	go test -race -timeout 20m ./...

.PHONY: integration
integration: ## black-box tests with the real engine (as root)
	go test -tags integration -count=1 -timeout 40m ./integration/...

.PHONY: test-v2
test-v2: engine build images examples ## core integration tests on cgroup v2, in an emulated machine (15 min and more)
	@sh contrib/deps.sh build test v2
	@sh integration/v2/run.sh $(BUILD)

.PHONY: check
check: ## formatting and vet
	@bad=$$(git ls-files '*.go' | xargs gofmt -l); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	go vet ./...
	go vet -tags integration ./integration/...

# fuzz runs every fuzz target for FUZZTIME.
FUZZTIME ?= 20s
.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (20s)
	@for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "== $$p $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; \
	done
