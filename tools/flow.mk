# The flow from weights to answers: the targets that this repository and a project of `marsmith new` share. The Makefile
# that includes this says what `setup` does, what MARSMITH is and which MODEL is meant.
VERSION ?=
WEIGHTS ?=

.PHONY: help setup export archive serve status stop

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s  %s\n", $$1, $$2 }' tools/flow.mk Makefile

setup:  ## 0. install everything that the rest needs

export: setup  ## 1. weights -> serialized file (WEIGHTS=file.pth|hub|random)
	@$(MARSMITH) export $(MODEL) $(if $(WEIGHTS),--weights $(WEIGHTS))

archive: setup  ## 2. -> model_store/<name>-<version>.mar (MODEL=name VERSION=2.0)
	@$(MARSMITH) archive $(MODEL) $(if $(VERSION),--version $(VERSION)) $(if $(WEIGHTS),--weights $(WEIGHTS))

serve: archive  ## 3. start TorchServe, wait until it really answers, send it an example
	@$(MARSMITH) status >/dev/null 2>&1 || $(MARSMITH) serve
	@$(MARSMITH) predict $(MODEL) --commands

status: setup  ## 4. what the server runs
	@$(MARSMITH) status

stop: setup  ## 5. stop the server
	@$(MARSMITH) stop
