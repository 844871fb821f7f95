# mm2onnx. `make demo` and `make test` are the two commands; both make the environment in .venv/ when it is missing.
#
#   TORCH_INDEX=URL   pip index for torch and torchvision, for example https://download.pytorch.org/whl/cpu
#                     (without it the default index serves torch, which on Linux is the 3 GB CUDA build)
#   PLAIN=1           no compiler: mmcv's operators run in PyTorch and numba; no Sphinx; an environment stays as it
#                     was made until it is made with PLAIN=0
#   MMCV_CUDA=1       compile mmcv's CUDA operators too (needs nvcc of torch's CUDA version)
#   MAX_JOBS=N        compiler processes for mmcv-full (default: one per core, about 1.2 GB each)
#   PYTHON=PATH       use this interpreter for test, demo, doctor and lint; no environment is made

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SUFFIXES:
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help

R := requirements
pin = $(shell sed -n 's/^$(1)==//p' $(R)/*.txt)
comma := ,
BASE_PYTHON ?= python3.11
MMCV_CUDA ?= 0
VENV := .venv
STAMPS := $(VENV)/.stamps
PLAIN ?= $(if $(wildcard $(STAMPS)/3-plain-*),1)
PLAIN := $(filter 1,$(PLAIN))
RUN := $(or $(PYTHON),$(VENV)/bin/python)
ENV := $(if $(PYTHON),,env)

# A stage is done when the stamp named after the hash of what it installs exists.
hash = $(shell { cat $(1); echo '$(2)'; } | sha256sum | cut -c1-12)
STAGE_VENV := $(STAMPS)/0-venv
STAGE_TORCH := $(STAMPS)/1-torch-$(call hash,$(R)/build.txt $(R)/torch.txt,$(TORCH_INDEX))
LIBS := requirements.txt $(R)/test.txt $(if $(PLAIN),,$(R)/docs.txt)
STAGE_LIBS := $(STAMPS)/2-libraries-$(call hash,$(LIBS) $(R)/lock.txt)
STAGE_MMCV := $(STAMPS)/3-$(if $(PLAIN),plain,mmcv)-$(call hash,$(R)/build.txt $(R)/torch.txt,$(call pin,mmcv-full) \
    $(TORCH_INDEX) $(MMCV_CUDA))
STAGE_MMLAB := $(STAMPS)/4-openmmlab-$(call hash,$(R)/openmmlab.txt pyproject.toml projects/driving/pyproject.toml)

# $(1): arguments. Shows what is downloaded; pip's own words come out only when it fails. Byte code of all modules is
# half of the time (48 of 108 s of CPU): a plain environment makes it when they are imported.
define pip
$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off $(if $(PLAIN),--no-compile) $(1) 2>$(STAMPS)/pip.log \
    | sed -un 's/^ *\(Downloading .*)\)$$/[env]     \1/p; s/^\(Installing collected packages\).*/[env]     installing/p' \
    || { cat $(STAMPS)/pip.log >&2; echo 'error: pip failed; run make again to go on from this stage' >&2; exit 1; }
endef
begin = mkdir -p $(STAMPS); start=$$SECONDS; echo "[env] $(1)"
finish = rm -f $(STAMPS)/$(firstword $(subst -, ,$(@F)))-*; touch $@; echo "[env]     done in $$((SECONDS - start)) s"
packages_of = $$($(1)/bin/python -c 'import site; print(site.getsitepackages()[0])')

.PHONY: help env env-tensorrt env-mmdet3 env-rotate wheels test test-fast test-matrix test-rounding test-workshop test-rotate \
    coverage demo demo-stream demo-lidar demo-fusion benchmark zoo doctor site lint clean distclean

help:
	@echo 'make env          the environment in .venv/ (first time: mmcv-full is compiled, 1 to 2 minutes on 2 cores)'
	echo 'make env PLAIN=1  the same without a compiler: no Sphinx, and mmcv computes in PyTorch and numba'
	echo 'make demo         a small trained ATSS: exported, proven, evaluated, drawn'
	echo 'make demo-stream, demo-lidar, demo-fusion   the same of StreamPETR, CenterPoint, BEVFusion on a generated nuScenes'
	echo 'make test         the test suite          make test-fast    a part of it     make test-matrix  the long matrices'
	echo 'make test-rounding   the test suite with the roundings of five other CPUs'
	echo 'make env-tensorrt, env-mmdet3, env-rotate   optional TensorRT-RTX (233 MB), mmdet 3, mmrotate; make test-rotate'
	echo 'make wheels       dist/: wheels of mm2onnx, its projects, and of mmcv and mmdet3d without compiled operators'
	echo 'make benchmark    every family on every engine that is here    make zoo   every config of the installed mmdet'
	echo 'make coverage     the lines of mmdeploy_ext/ that the suite runs'
	echo 'make doctor       versions, engines, and what is wrong with a fix     make lint   ruff'
	echo 'make site         the documentation as a site, build/site/index.html     make test-workshop  tests of its pages'
	echo 'make clean        caches and work_dirs                      make distclean  .venv too'

env: $(STAGE_VENV) $(STAGE_TORCH) $(STAGE_LIBS) $(STAGE_MMCV) $(STAGE_MMLAB)
	@:

$(STAGE_VENV):
	@command -v $(BASE_PYTHON) >/dev/null || { echo "error: $(BASE_PYTHON) not found;" \
	    "on Debian: apt install python3 python3-venv python3-dev build-essential" >&2; exit 1; }
	$(BASE_PYTHON) -m venv --clear $(VENV)
	$(call begin,0/4 $(VENV)/ from $$($(BASE_PYTHON) --version))
	$(finish)

$(STAGE_TORCH): | $(STAGE_VENV)
	@$(call begin,1/4 build tools and torch $(call pin,torch) (to download: 0.2 GB for CPU$(comma) 3 GB for CUDA))
	$(call pip,-r $(R)/build.txt)
	$(call pip,-r $(R)/torch.txt -c $(R)/build.txt -c $(R)/lock.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)))
	$(finish)

$(STAGE_LIBS): | $(STAGE_TORCH)
	@$(call begin,2/4 libraries)
	$(call pip,$(addprefix -r ,$(LIBS)) -c $(R)/build.txt)
	$(finish)

# Distribution `mmcv` has the files of `mmcv-full` without its compiled module.
$(STAGE_MMCV): | $(STAGE_LIBS)
	@$(call begin,3/4 mmcv $(call pin,mmcv-full) with$(if $(PLAIN),out) compiled operators)
	$(VENV)/bin/python -m pip uninstall --quiet --yes mmcv mmcv-full 2>/dev/null
	wheel=$(if $(PLAIN),mmcv==$(call pin,mmcv-full),$$($(R)/build_mmcv.sh $(VENV)/bin/python mmcv-full $(call pin,mmcv-full) $(MMCV_CUDA)))
	$(call pip,--no-deps --no-build-isolation "$$wheel")
	$(finish)

$(STAGE_MMLAB): | $(STAGE_MMCV)
	@$(call begin,4/4 mmdet$(comma) mmsegmentation and mmdet3d without their outdated pins$(comma) and mm2onnx of this checkout)
	$(call pip,--no-deps --no-build-isolation $(shell grep -v -e '^#' -e '^mmcv' $(R)/openmmlab.txt) -e . -e projects/driving)
	$(finish)

# Optional. Constraints keep every pinned package as it is; mmdet 3 and mmrotate stand beside the libraries of .venv/.
env-tensorrt: $(ENV)
	@$(call begin,tensorrt-rtx $(call pin,tensorrt-rtx) (233 MB))
	$(call pip,-r $(R)/tensorrt.txt -c $(R)/build.txt -c $(R)/torch.txt)

env-mmdet3: $(ENV)
	@$(call begin,mmdet 3$(comma) and mmcv 2 with the operators of mmcv $(call pin,mmcv-full)$(comma) in .venv-mmdet3/)
	$(BASE_PYTHON) -m venv --clear --without-pip .venv-mmdet3
	packages=$(call packages_of,.venv-mmdet3)
	$(call pip,--no-deps --target "$$packages" -r $(R)/mmdet3.txt)
	cp $(R)/mmdet3_ext.py "$$packages/mmcv/_ext.py"
	echo "$(call packages_of,$(VENV))" >"$$packages/mm2onnx.pth"

# mmcv without compiled operators and mmdet3d are on PyPI as sources alone, which need this environment's setuptools.
wheels: $(ENV)
	@left="$$(echo {.,projects/driving,projects/mmrotate}/{build/lib,build/bdist.*,*.egg-info})"
	rm -rf dist $$left
	$(RUN) -m pip wheel --quiet --no-deps --no-build-isolation -w dist . projects/driving projects/mmrotate \
	    mmcv==$(call pin,mmcv-full) mmdet3d==$(call pin,mmdet3d)
	rm -rf $$left
	ls dist

env-rotate: $(ENV)
	@$(call begin,mmrotate $(call pin,mmrotate) and projects/mmrotate/ in .venv-rotate/)
	$(BASE_PYTHON) -m venv --clear --without-pip .venv-rotate
	packages=$(call packages_of,.venv-rotate)
	$(call pip,--no-deps --no-build-isolation --target "$$packages" -r $(R)/mmrotate.txt ./projects/mmrotate)
	echo "import site; site.addsitedir('$(call packages_of,$(VENV))')" >"$$packages/mm2onnx.pth"
	printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m mmdeploy_ext "$$@"\n' >.venv-rotate/bin/mm2onnx
	chmod +x .venv-rotate/bin/mm2onnx

test-rotate: $(if $(wildcard .venv-rotate/bin/python),,env-rotate)
	OMP_NUM_THREADS=1 .venv-rotate/bin/python -m pytest projects/mmrotate/tests -n auto --dist loadfile -ra $(PYTEST_ARGS)

# Files are not split: what a file's tests share is made once. The number of processes: conftest.py.
# `test-fast` has what needs neither a trained model nor long set-ups, `test-workshop` tables and pages.
FAST := test_layout.py test_guards.py base spec engines families/evaluate graphs bench/lint runtime/preprocess upstream/weights
test: tests := tests projects/driving/tests --ignore=tests/workshop
test-fast: tests := $(addprefix tests/,$(FAST))
test-matrix: tests := tests projects/driving/tests -m matrix
coverage: tests := tests projects/driving/tests --ignore=tests/workshop --cov --cov-report=term
test-workshop: tests := tests/workshop -m 'matrix or not matrix'
test test-fast test-matrix test-workshop coverage: export PYTHONDONTWRITEBYTECODE :=
test test-fast test-matrix test-workshop coverage: $(ENV)
	$(RUN) -m pytest $(tests) -n auto --dist loadfile --durations=20 -ra $(PYTEST_ARGS)

# `make test` five times, each with other toys within the rounding of float32: tests/support/disturbed.py.
test-rounding: tests := tests projects/driving/tests --ignore=tests/workshop
test-rounding: seeds := 1 2 3 4 5
test-rounding: export PYTHONDONTWRITEBYTECODE :=
test-rounding: $(ENV)
	@verdicts=''
	for seed in $(seeds); do
	    verdict=green
	    $(RUN) -m pytest $(tests) -n auto --dist loadfile -ra --disturb $$seed $(PYTEST_ARGS) || verdict=red
	    verdicts+="seed $$seed: $$verdict"$$'\n'
	done
	printf '%s' "$$verdicts"
	[[ $$verdicts != *red* ]]

demo-stream: toy := projects/configs/StreamPETR/stream_petr_toy demo/checkpoints/stream_petr_toy.pth work_dirs/demo_stream 120
demo-lidar: toy := projects/configs/BEVFusion/centerpoint_toy demo/checkpoints/centerpoint_toy.pth work_dirs/demo_lidar ''
demo-fusion: toy := projects/configs/BEVFusion/bevfusion_toy demo/checkpoints/bevfusion_toy.pth work_dirs/demo_fusion 24
demo-stream demo-lidar demo-fusion: $(ENV)
	tools/demo/drive.sh $(RUN) $(toy)

demo: tool = tools/demo/demo.py $(DEMO_ARGS)
benchmark: tool = tools/analysis_tools/benchmark_all.py $(BENCHMARK_ARGS)
zoo: tool = tools/analysis_tools/zoo.py $(ZOO_ARGS)
doctor: tool = -m mmdeploy_ext.upstream.compat.doctor
lint: tool = -m ruff check .
demo demo-stream demo-lidar demo-fusion benchmark zoo doctor: export PYTHONDONTWRITEBYTECODE :=
demo benchmark zoo doctor lint: $(ENV)
	$(RUN) $(tool)

site: $(ENV)
	$(RUN) -m sphinx -q -W --keep-going -j auto -c docs/_site -d build/site-cache . build/site
	echo 'site: build/site/index.html'

clean:
	rm -rf work_dirs build dist .coverage .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-mmdet3 .venv-rotate
