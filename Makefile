# `make demo` and `make test` each do all the set-up from nothing on Debian 12; the second time they are quick.

VENV    := .venv
PY      := $(VENV)/bin/python
SEMAIR  := $(VENV)/bin/semair
APT     := gnuradio libiio-utils uhd-host python3-soapysdr soapysdr-module-uhd gir1.2-gtk-3.0 python3-venv xvfb
STAMP   := $(VENV)/.installed
WARM    := $(VENV)/.compiled

.PHONY: demo test lint fuzz setup clean

demo: setup $(WARM)
	$(SEMAIR) run closed-loop --folder runs/demo --overwrite
	$(SEMAIR) replay runs/demo
	@echo "report      runs/demo/report.html"

# What is compiled at first use is kept: this belongs to the set-up.
$(WARM): $(STAMP)
	$(SEMAIR) run closed-loop --rounds 1 --no-record --no-report --folder build/compiled --overwrite > /dev/null
	touch $@

test: setup lint
	# A file's tests stay together: many share what takes long to make.
	$(PY) -m pytest -n auto --dist loadfile

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p $(VENV)/typing && ln -sfn ../.. $(VENV)/typing/semair
	MYPYPATH=$(VENV)/typing $(VENV)/bin/mypy

fuzz: setup
	$(PY) -m pip install -q -c constraints.txt -e '.[fuzz]'
	$(PY) tests/fuzz/fuzz.py --seconds 600 --findings build/fuzz

setup: $(STAMP)

# Debian packages are installed only where one is missing; without root this says what to type.
$(STAMP): pyproject.toml constraints.txt Makefile
	@missing=""; for p in $(APT); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	  elif command -v sudo >/dev/null; then \
	    sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	  else echo "Install these Debian packages as root, then call make again:$$missing"; exit 1; fi; \
	fi
	test -x $(PY) || /usr/bin/python3 -m venv --system-site-packages $(VENV)
	# By itself and first, so that nothing else chooses the build; training on a GPU has its own environment.
	$(PY) -m pip install -q -c constraints.txt torch==2.13.0
	$(PY) -m pip install -q -c constraints.txt -e '.[dev,hdf5,heif]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
