# Everything has its script; this file only says which, and in what order things are needed.

SHELL = /bin/bash
RUNTIME ?= crun
REPEAT ?= 1
ENV = . deploy/scripts/toolchain.sh

.PHONY: help run test vm-test system-test crictl critest youki kubelet kubelet-test fuzz bench bench-pull build tools images deps clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

run: ## Try it (as root): install what is missing, build, start, run one pod, stay in the foreground
	@deploy/scripts/run.sh

test: ## Every check (as root); ends with the counts
	@deploy/scripts/test.sh

deps: ## Install what the tests need, from Debian (as root)
	@deploy/scripts/install.sh test

build: ## The debug build that the system lane uses
	@$(ENV) && need_cargo && cargo build

tools: ## crictl, critest, the current CNI plugins and our own tools into critest/bin
	@$(ENV) && need_go && $(MAKE) -s -C critest tools

images: ## The test images into critest/images/out, from Debian packages
	@$(ENV) && need_go && $(MAKE) -s -C critest images

system-test: build tools images ## Only the system lane (as root); TEST=name picks tests
	@$(ENV) && need_root $@ && tests/in-lane.sh cargo test --offline --test system -- --ignored $(TEST)

crictl: build tools images ## Only the crictl script (as root), with RUNTIME=crun or runc
	@$(ENV) && need_root $@ && tests/crictl.sh $(RUNTIME)

critest: build tools images ## The upstream suite (as root), with RUNTIME=crun, runc or youki; FLAGS are critest's; REPEAT=n
	@$(ENV) && need_root $@ && REPEAT=$(REPEAT) tests/critest.sh $(RUNTIME) $(FLAGS)

youki: ## A third runtime into critest/bin, from crates.io (some minutes), for RUNTIME=youki
	@$(ENV) && need_cargo && deploy/scripts/youki.sh

vm-test: build tools images ## cgroup v2, systemd and AppArmor in a QEMU guest (as root); STEPS picks of service critest crictl system
	@$(ENV) && need_root $@ && deploy/scripts/install.sh vm && cargo test --no-run --test system && tests/vm.sh $(STEPS)

kubelet: ## A real kubelet into critest/bin, from the Go module proxy (some minutes the first time)
	@$(ENV) && need_go && $(MAKE) -s -C critest kubelet

kubelet-test: build tools images kubelet ## A real kubelet drives cricket (as root), with RUNTIME=crun or runc; KEEP=DIR keeps the logs
	@$(ENV) && need_root $@ && deploy/scripts/install.sh test && tests/kubelet.sh $(RUNTIME)

fuzz: ## Fuzzing of what reads untrusted bytes, TIME seconds for each target (60), or only TARGET; SANITIZER=address
	@TIME=$(TIME) TARGET=$(TARGET) SANITIZER=$(SANITIZER) deploy/scripts/fuzz.sh

bench: tools images ## Latency and memory beside the raw runtime (as root), with RUNTIME=crun or runc
	@$(ENV) && need_root $@ && need_cargo && cargo build --release && tests/bench.sh $(RUNTIME)

bench-pull: tools images ## Pulls beside the plain tools and Debian's containerd (as root); ROUNDS=n
	@$(ENV) && need_root $@ && need_cargo && deploy/scripts/install.sh bench && cargo build --release && tests/bench-pull.sh

clean: ## Remove what was built outside of cargo's folder
	@$(MAKE) -s -C critest clean
