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
integration: integration-deps ## black-box tests with the real engine, hostile functions and a sample of the faults (as root)
	go test -tags 'integration faults' -p 1 -count=1 -timeout 40m ./integration/...

# integration-deps fetches and builds what the tests build themselves: they run in a network namespace without a way out.
.PHONY: integration-deps
integration-deps:
	@cd integration/nerdctl && CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' go build -o /dev/null .

.PHONY: test-faults
test-faults: ## the black-box tests with every fault of every part (as root, 25 min)
	@sh contrib/deps.sh build test
	@$(MAKE) -s engine build images examples integration-deps
	LFX_FAULTS=full go test -tags 'integration faults' -count=1 -timeout 60m ./integration/

.PHONY: test-load
test-load: ## a minute of steady load over 20 deploys and 5 rollbacks, and the same with kills (as root, 5 min)
	@sh contrib/deps.sh build test
	@$(MAKE) -s engine build images examples
	LFX_LOAD=full go test -tags integration -count=1 -timeout 20m -v -run 'UnderLoad' ./integration/

.PHONY: test-v2
test-v2: engine build images examples ## core integration tests on cgroup v2, in an emulated machine (15 min and more)
	@sh contrib/deps.sh build test v2
	@sh integration/v2/run.sh $(BUILD)

# Installation. PREFIX other than /usr is written into the units and the configuration. DESTDIR is for packages:
# nothing is then done on this host.
PREFIX  ?= /usr
DESTDIR ?=
ETC     ?= /etc
ZSHDIR  ?= $(PREFIX)/share/zsh/site-functions
BIN     ?= $(BUILD)/bin
UNITS   := lfxd.service lfxd.socket lfxd-invoke.socket lfxd-tcp.socket lfx-containerd.service lfx-buildkitd.service lfx-fn.slice lfx-build.slice
ENGINE  := containerd containerd-shim-runc-v2 ctr runc buildkitd buildctl bridge loopback host-local lfx-init
INSTALLED = $(PREFIX)/bin/lfxd $(PREFIX)/bin/lfxctl $(PREFIX)/libexec/lfxd \
	$(addprefix $(PREFIX)/lib/systemd/system/,$(UNITS)) $(PREFIX)/lib/sysusers.d/lfxd.conf \
	$(PREFIX)/lib/tmpfiles.d/lfxd.conf $(PREFIX)/lib/sysctl.d/60-lfxd.conf \
	$(PREFIX)/share/bash-completion/completions/lfxctl $(ZSHDIR)/_lfxctl

.PHONY: install
install: ## install lfxd, its engine and its units (PREFIX=/usr, DESTDIR=)
	@$(MAKE) -s engine build
	@$(MAKE) -s install-files
	@if [ -z "$(DESTDIR)" ]; then \
	  systemd-sysusers lfxd.conf && { systemd-tmpfiles --create lfxd.conf || true; }; \
	  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; \
	  echo "installed: start it with systemctl enable --now lfxd"; \
	fi

# install-files copies what is built.
.PHONY: install-files
install-files:
	@for f in $(addprefix $(BUILD)/engine/,$(ENGINE)) $(BIN)/lfxd $(BIN)/lfxctl; do \
	  [ -x "$$f" ] || { echo "$$f is missing: run make engine build first" >&2; exit 1; }; done
	@install -d $(addprefix $(DESTDIR)$(PREFIX)/,bin libexec/lfxd lib/systemd/system lib/sysusers.d lib/tmpfiles.d lib/sysctl.d share/bash-completion/completions) \
	  $(DESTDIR)$(ZSHDIR)
	@install -d -m 750 $(DESTDIR)$(ETC)/lfxd
	@install -m 755 $(BIN)/lfxd $(BIN)/lfxctl $(DESTDIR)$(PREFIX)/bin/
	@install -m 755 $(addprefix $(BUILD)/engine/,$(ENGINE)) $(DESTDIR)$(PREFIX)/libexec/lfxd/
	@for u in $(UNITS); do sed -e 's#/usr/bin/lfxd#$(PREFIX)/bin/lfxd#' -e 's#/usr/share/doc#$(PREFIX)/share/doc#' contrib/systemd/$$u >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$u && \
	  chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/$$u || exit 1; done
	@install -m 644 contrib/systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/lfxd.conf
	@install -m 644 contrib/systemd/tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/lfxd.conf
	@install -m 644 contrib/systemd/sysctl.conf $(DESTDIR)$(PREFIX)/lib/sysctl.d/60-lfxd.conf
	@[ -e $(DESTDIR)$(ETC)/lfxd/config.toml ] || { \
	  if [ "$(PREFIX)" = /usr ]; then cat contrib/systemd/config.toml; \
	  else sed 's#^\#libexec_dir = .*#libexec_dir = "$(PREFIX)/libexec/lfxd"#' contrib/systemd/config.toml; fi >$(DESTDIR)$(ETC)/lfxd/config.toml && \
	  chmod 640 $(DESTDIR)$(ETC)/lfxd/config.toml; }
	@$(BIN)/lfxctl completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/lfxctl
	@$(BIN)/lfxctl completion zsh >$(DESTDIR)$(ZSHDIR)/_lfxctl

.PHONY: uninstall
uninstall: ## stop lfxd and remove what make install put in place; configuration and data stay
	@if [ -z "$(DESTDIR)" ]; then \
	  if [ -d /run/systemd/system ]; then systemctl disable --now lfxd.socket lfxd-invoke.socket lfxd-tcp.socket lfxd.service 2>/dev/null || true; \
	    systemctl stop lfx-buildkitd.service lfx-containerd.service 2>/dev/null || true; fi; \
	  if [ -x $(PREFIX)/bin/lfxd ]; then $(PREFIX)/bin/lfxd down; fi; \
	  if [ -d /run/systemd/system ]; then systemctl stop lfx-fn.slice lfx-build.slice lfx.slice 2>/dev/null || true; \
	    find /sys/fs/cgroup -depth -type d -path '*/lfx.slice*' -exec rmdir {} \; 2>/dev/null || true; fi; \
	fi
	@rm -rf $(addprefix $(DESTDIR),$(INSTALLED))
	@if [ -z "$(DESTDIR)" ]; then \
	  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; \
	  echo "uninstalled: $(ETC)/lfxd and /var/lib/lfxd are left to you"; \
	fi

.PHONY: deb
deb: ## make a Debian package in build/
	@$(MAKE) -s engine build
	@sh contrib/debian/build.sh $(BUILD) $(VERSION)

.PHONY: check
check: ## formatting and vet
	@bad=$$(git ls-files '*.go' | xargs gofmt -l); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	go vet ./...
	go vet -tags 'integration faults' ./integration/...

# fuzz runs every fuzz target for FUZZTIME.
FUZZTIME ?= 20s
.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (20s)
	@for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "== $$p $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; \
	done

# sim: SIMFLAGS='-functions 1000 -seed 7', see docs/simulation.md.
SIMFLAGS ?=
.PHONY: sim
sim: ## drive the keep-alive policy through a synthetic day, beside fixed windows (2 min, no root)
	@go run ./integration/sim $(SIMFLAGS)

# bench: BENCHTIME=short measures for about four minutes; BENCHFLAGS=-json prints JSON, see docs/performance.md.
BENCHTIME ?= full
BENCHFLAGS ?=
.PHONY: bench
bench: engine build images examples ## measure lfxd against an echo, runc and the bare process (as root)
	@mkdir -p $(BUILD)/bench
	@go build -o $(BUILD)/bench/bench ./integration/bench
	@$(BUILD)/bench/bench -root $(CURDIR) $(if $(filter short,$(BENCHTIME)),-short) $(BENCHFLAGS)
