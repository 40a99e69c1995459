# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both install into .venv beside this file; nothing global is touched. PYTHON chooses the
# interpreter; packages it already has (torch, detectron2, ...) are used and not installed again.

# Folders may have spaces in their names: make takes them for the ends of words unless escaped.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SPACE := $(subst ,, )
READY := $(subst $(SPACE),\$(SPACE),$(VENV))/ready

# The tests run in two processes where two cores are; ORDER=N shuffles them, the same N alike.
WORKERS ?= auto
ORDER ?=

# Detectron2 compiles small functions while it is imported; newer torch says so on each start.
export PYTHONWARNINGS := ignore::FutureWarning:torch.jit._script

# Detectron2 has no release of its own on PyPI. This wheel is upstream of April 2024; it is tagged
# for CPython 3.10 but runs on any, since its one compiled module is optional.
DETECTRON2 := sal-detectron2==0.7.2
DETECTRON2_PIP := --no-deps --only-binary=:all: --python-version 3.10 --implementation cp --abi none

.PHONY: demo demo-video test gpu-test lint bench setup doctor clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   install, make the built-in scenes, train, evaluate, write output/demo/report.html"
	@echo "make demo-video   the same with video: instances and semantics of moving scenes"
	@echo "make test   install and run the tests"
	@echo "make lint   check the style and the types"
	@echo "make setup  install only;  make doctor  what works here and what does not"
	@echo "make bench  speed against peers;  make gpu-test  the tests that need a CUDA device"

demo: $(READY)
	"$(BIN)/python" demo/run_demo.py

demo-video: $(READY)
	"$(BIN)/python" demo/run_video_demo.py

test: $(READY)
	"$(BIN)/python" -m pytest -q tests -n $(WORKERS) --dist worksteal \
		$(if $(ORDER),--order-seed $(ORDER)) \
		$(if $(wildcard ../shared/golden),-m "not gpu and not slow")

gpu-test: $(READY)
	"$(BIN)/python" -m pytest -q tests -m gpu

bench: $(READY)
	"$(BIN)/python" benchmarks/ms_deform_attn.py
	"$(BIN)/python" benchmarks/whole_model.py
	"$(BIN)/python" benchmarks/large_vocabulary.py

lint: $(READY)
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/mypy"

doctor: $(READY)
	"$(BIN)/python" -m rankseg_m2f.doctor

setup: $(READY)

# With torch in the given interpreter the virtual environment sees its packages and keeps their
# versions; otherwise the tested set of constraints.txt is installed.
$(READY): pyproject.toml setup.py constraints.txt Makefile
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@if "$(PYTHON)" -c "import torch, torchvision" 2>/dev/null; then \
		echo "Using torch of $$("$(PYTHON)" -c 'import sys; print(sys.executable)')"; \
		"$(PYTHON)" -m venv --system-site-packages "$(VENV)"; \
		: > "$(VENV)/constraints.txt"; \
	else \
		"$(PYTHON)" -m venv "$(VENV)"; \
		cp constraints.txt "$(VENV)/constraints.txt"; \
	fi
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check \
		-c "$(VENV)/constraints.txt" -e ".[test,demo]"
	@# Again without isolation: now torch is there to build the optional C++ kernel against.
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation -e . || echo "The C++ kernel was not built; PyTorch serves instead"
	@if "$(BIN)/python" -c "import detectron2" 2>/dev/null; then \
		echo "Using the detectron2 that is there"; \
	else \
		"$(BIN)/python" -m pip install --quiet --disable-pip-version-check $(DETECTRON2_PIP) \
			--target "$$("$(BIN)/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')" \
			$(DETECTRON2); \
	fi
	@touch "$(VENV)/ready"

clean:
	rm -rf "$(VENV)" output build *.egg-info
