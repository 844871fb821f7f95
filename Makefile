# mm2onnx. `make demo` and `make test` are the two commands; both make the environment in .venv/ when it is missing.
#
#   TORCH_INDEX=URL   pip index for torch and torchvision, for example https://download.pytorch.org/whl/cpu
#                     (without it the default index serves torch, which on Linux is the 3 GB CUDA build)
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

pin = $(shell sed -n 's/^$(1)==//p' requirements-*.txt)
TORCH_VERSION := $(call pin,torch)
MMCV_VERSION := $(call pin,mmcv-full)
comma := ,
BASE_PYTHON ?= python3.11
MMCV_CUDA ?= 0
PYTEST_ARGS ?=
DEMO_ARGS ?=

VENV := .venv
STAMPS := $(VENV)/.stamps
WHEEL_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mm2onnx/wheels

ifdef PYTHON
RUN := $(PYTHON)
ENV :=
else
RUN := $(VENV)/bin/python
ENV := env
endif

# A stage is done when the stamp named after the hash of what it installs exists.
hash = $(shell { cat $(1); echo '$(2)'; } | sha256sum | cut -c1-12)
STAGE_VENV := $(STAMPS)/0-venv
STAGE_TORCH := $(STAMPS)/1-torch-$(call hash,requirements-build.txt requirements-torch.txt,$(TORCH_INDEX))
STAGE_LIBS := $(STAMPS)/2-libraries-$(call hash,requirements.txt requirements-test.txt requirements-docs.txt requirements-lock.txt)
STAGE_MMCV := $(STAMPS)/3-mmcv-$(call hash,requirements-build.txt requirements-torch.txt,$(MMCV_VERSION) $(MMCV_CUDA) $(TORCH_INDEX))
STAGE_MMLAB := $(STAMPS)/4-openmmlab-$(call hash,requirements-openmmlab.txt)
STAGE_COMMAND := $(STAMPS)/5-command-$(call hash,pyproject.toml)

# $(1): arguments. Shows what is downloaded; pip's own words come out only when it fails.
define pip
$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off $(1) 2>$(STAMPS)/pip.log \
    | sed -un 's/^ *\(Downloading .*)\)$$/[env]     \1/p; s/^\(Installing collected packages\).*/[env]     installing/p' \
    || { cat $(STAMPS)/pip.log >&2; echo 'error: pip failed; run make again to go on from this stage' >&2; exit 1; }
endef
INDEX = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
begin = mkdir -p $(STAMPS); start=$$SECONDS; echo "[env] $(1)"
finish = rm -f $(STAMPS)/$(firstword $(subst -, ,$(@F)))-*; touch $@; echo "[env]     done in $$((SECONDS - start)) s"

# $(1): the folder of mmcv's sources. Of the 10 s of a file 9 are PyTorch's headers: 53 files in one take 19 s. Three
# of the kernels define names that others define too.
define join_mmcv
for folder in "$(1)" "$(1)/cpu"; do
    (cd "$$folder"; mkdir whole
    for file in *.cpp; do
        case $$folder/$$file in */pybind.cpp|*/cpu/bezier_align.cpp|*/cpu/psamask.cpp|*/cpu/roi_align_rotated.cpp|*/cpu/rotated_*.cpp) continue;; esac
        mv $$file whole/; echo "#include \"whole/$$file\"" >>joined.cpp
    done)
done
endef

# $(1): the wheel folder; $(2), $(3): package and version, mmcv-full 1 or mmcv 2. ninja's "[1/6]" lines in the log are
# the progress. Debug information, which Python's own flags ask for, is half of the time (16 to 19 s of a file, 8
# without; a precompiled header makes it 11).
define build_mmcv
log="$(1)/mmcv_build.log"; src="$(1)/src/$(2)-$(3)"
if [ ! -d "$$src" ]; then
    rm -rf "$(1)/src" "$(1)/src.part" "$(1)/sdist"
    $(VENV)/bin/python -m pip download --quiet --no-deps --no-build-isolation --no-binary $(2) -d "$(1)/sdist" $(2)==$(3)
    mkdir -p "$(1)/src.part"
    tar -xzf "$(1)"/sdist/$(2)-*.tar.gz -C "$(1)/src.part"
    $(if $(filter 1,$(MMCV_CUDA)),,$(call join_mmcv,$(1)/src.part/$(2)-$(3)/mmcv/ops/csrc/pytorch))
    mv "$(1)/src.part" "$(1)/src"; rm -rf "$(1)/sdist"
fi
rm -rf "$(1)/wheel.part"
echo "[env]     compiling (1 to 2 minutes on 2 cores; log: $$log)"
(cd "$$src" && PATH="$(abspath $(VENV))/bin:$$PATH" CFLAGS="-O2 -g0" MMCV_WITH_OPS=1 MAX_JOBS=$${MAX_JOBS:-$$(nproc)} FORCE_CUDA=$(MMCV_CUDA) \
    $(if $(filter 1,$(MMCV_CUDA)),,CUDA_VISIBLE_DEVICES=) \
    "$(abspath $(VENV))/bin/python" setup.py bdist_wheel -d "$(1)/wheel.part") >"$$log" 2>&1 9>&- &
builder=$$!
trap 'kill $$builder 2>/dev/null || true' EXIT
while kill -0 $$builder 2>/dev/null; do
    for _ in $$(seq 20); do sleep 1; kill -0 $$builder 2>/dev/null || break; done
    echo "[env]     $$((SECONDS - start)) s  $$(grep -oE '^\[[0-9]+/[0-9]+\]' "$$log" | tail -1 || true)"
done
wait $$builder || { tail -30 "$$log" >&2; echo "error: $(2) did not compile; the log is $$log" >&2; exit 1; }
mv "$(1)"/wheel.part/*.whl "$(1)/"
rm -rf "$(1)/src" "$(1)/wheel.part"
endef

# $(1), $(2): package and version; leaves the wheel in $$dir. It is kept per Python and torch build. Sources and objects
# stay beside it until the wheel is whole, so an interrupted compilation goes on where it was; the lock lets a second
# clone wait for the first one's wheel.
define mmcv_wheel
torch=$$($(VENV)/bin/python -c 'import importlib.metadata as m; print(m.version("torch"))')
python=$$($(VENV)/bin/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
dir=$(WHEEL_CACHE)/$$python-torch$$torch$(if $(filter 1,$(MMCV_CUDA)),-cuda)
mkdir -p "$$dir"
exec 9>"$$dir/.lock"
flock -n 9 || { echo '[env]     another make is compiling it; waiting'; flock 9; }
if ! compgen -G "$$dir/$(subst -,_,$(1))-$(2)-*.whl" >/dev/null; then
    $(call build_mmcv,$$dir,$(1),$(2))
else
    echo "[env]     wheel from $$dir"
fi
exec 9>&-
endef

.PHONY: tensorrt-exports tensorrt-device tensorrt-judged help env env-tensorrt env-mmdet3 env-rotate test-rotate tensorrt-table tensorrt-table-full test test-fast test-matrix demo demo-stream demo-lidar demo-fusion demo-web benchmark zoo doctor site lint clean distclean

help:
	@echo 'make env          the environment in .venv/ (first time: mmcv-full is compiled, 1 to 2 minutes on 2 cores)'
	echo 'make demo         a small trained ATSS: exported, proven, evaluated, drawn'
	echo 'make demo-stream  a small trained StreamPETR on a generated nuScenes: the same, and a film'
	echo 'make demo-lidar   a small trained CenterPoint on the same: from points to boxes, and a picture from above'
	echo 'make demo-fusion  a small trained BEVFusion on the same: cameras and points to boxes, and a film'
	echo 'make demo-web     the small ATSS in your browser: the verdict there, and a picture of yours'
	echo 'make test         the test suite          make test-fast    a part of it     make test-matrix  the long matrices'
	echo 'make env-tensorrt the optional TensorRT-RTX (233 MB)     make tensorrt-table   what builds, for which GPU'
	echo 'make env-mmdet3   the optional mmdet 3 in .venv-mmdet3/, which docs/mmdet3.md is measured with'
	echo 'make env-rotate   the optional mmrotate in .venv-rotate/, which projects/mmrotate/ exports     make test-rotate  its tests'
	echo 'make tensorrt-table-full   the same of full-size models with seeded weights'
	echo 'make benchmark    every family on every engine that is here, against PyTorch: docs/benchmarks.md'
	echo 'make zoo          every config of the installed mmdet, exported with seeded weights and proven: docs/zoo.md'
	echo 'make doctor       versions, engines, and what is wrong with a fix'
	echo 'make site         the documentation as a site with search, build/site/index.html'
	echo 'make lint         ruff                    make clean        caches and work_dirs   make distclean  .venv too'

env: $(STAGE_VENV) $(STAGE_TORCH) $(STAGE_LIBS) $(STAGE_MMCV) $(STAGE_MMLAB) $(STAGE_COMMAND)
	@:

$(STAGE_VENV):
	@command -v $(BASE_PYTHON) >/dev/null || { echo "error: $(BASE_PYTHON) not found;" \
	    "on Debian: apt install python3 python3-venv python3-dev build-essential" >&2; exit 1; }
	echo "[env] 0/5 $(VENV)/ from $$($(BASE_PYTHON) --version)"
	start=$$SECONDS
	$(BASE_PYTHON) -m venv --clear $(VENV)
	mkdir -p $(STAMPS)
	$(finish)

$(STAGE_TORCH): | $(STAGE_VENV)
	@$(call begin,1/5 build tools and torch $(TORCH_VERSION) (to download: 0.2 GB for CPU$(comma) 3 GB for CUDA))
	$(call pip,-r requirements-build.txt)
	$(call pip,-r requirements-torch.txt -c requirements-build.txt -c requirements-lock.txt $(INDEX))
	$(finish)

$(STAGE_LIBS): | $(STAGE_TORCH)
	@$(call begin,2/5 libraries of requirements.txt and requirements-test.txt)
	$(call pip,-r requirements.txt -r requirements-test.txt -c requirements-build.txt)
	$(finish)

$(STAGE_MMCV): | $(STAGE_LIBS)
	@$(call begin,3/5 mmcv-full $(MMCV_VERSION) with compiled operators)
	$(call mmcv_wheel,mmcv-full,$(MMCV_VERSION))
	$(call pip,--no-deps --force-reinstall "$$dir"/mmcv_full-$(MMCV_VERSION)-*.whl)
	$(finish)

$(STAGE_MMLAB): | $(STAGE_MMCV)
	@$(call begin,4/5 mmdet$(comma) mmsegmentation and mmdet3d (without their outdated pins))
	$(call pip,--no-deps --no-build-isolation -r requirements-openmmlab.txt)
	$(finish)

# The package in place: what is edited is what runs.
$(STAGE_COMMAND): | $(STAGE_MMLAB)
	@$(call begin,5/5 the command mm2onnx$(comma) of this checkout)
	$(call pip,--no-deps --no-build-isolation -e .)
	$(finish)

# Constraints keep every pinned package as it is.
env-tensorrt: $(ENV)
	@$(call begin,tensorrt-rtx $(call pin,tensorrt-rtx) (233 MB))
	$(call pip,-r requirements-tensorrt.txt -c requirements-build.txt -c requirements-torch.txt)

# mmdet 3 beside the torch and the libraries of .venv/: packages here stand before those there. Nothing else needs it.
MMDET3 := .venv-mmdet3
env-mmdet3: $(ENV)
	@$(call begin,mmdet 3$(comma) mmengine$(comma) and mmcv $(call pin,mmcv) compiled (1 to 2 minutes on 2 cores)$(comma) in $(MMDET3)/)
	$(call mmcv_wheel,mmcv,$(call pin,mmcv))
	$(BASE_PYTHON) -m venv --clear --without-pip $(MMDET3)
	packages=$$($(MMDET3)/bin/python -c 'import site; print(site.getsitepackages()[0])')
	$(call pip,--no-deps --target "$$packages" -r requirements-mmdet3.txt --find-links "$$dir")
	$(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])' >"$$packages/mm2onnx.pth"

# mmrotate and its families beside the torch and the libraries of .venv/, as mmdet 3 above. Both are pure Python.
ROTATE := .venv-rotate
env-rotate: $(ENV)
	@$(call begin,mmrotate $(call pin,mmrotate) and projects/mmrotate/ in $(ROTATE)/)
	$(BASE_PYTHON) -m venv --clear --without-pip $(ROTATE)
	packages=$$($(ROTATE)/bin/python -c 'import site; print(site.getsitepackages()[0])')
	$(call pip,--no-deps --no-build-isolation --target "$$packages" -r requirements-mmrotate.txt ./projects/mmrotate)
	site=$$($(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')
	echo "import site; site.addsitedir('$$site')" >"$$packages/mm2onnx.pth" # with mm2onnx, which is there in place
	printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m mmdeploy_ext "$$@"\n' >$(ROTATE)/bin/mm2onnx
	chmod +x $(ROTATE)/bin/mm2onnx

# The tests of projects/mmrotate/; those of tests/ need none of it.
test-rotate: $(if $(wildcard $(ROTATE)/bin/python),,env-rotate)
	OMP_NUM_THREADS=1 $(ROTATE)/bin/python -m pytest projects/mmrotate/tests -n auto --dist loadfile -ra $(PYTEST_ARGS)

# Exports the toys whose checkpoints are there, builds them in float32 and float16 for each architecture.
TENSORRT := work_dirs/tensorrt
TENSORRT_SM := 75 80 86 89 120 121
SITES := $(foreach level,0 1 2 3,M$(level)=100/3000/20000)
# Points of a cloud, and rows of the tables that the cells of a rig are gathered by.
CELLS := P=1000/10000/40000 R=1000/4500/9000 R2=100/600/3000 R3=1/20/600 W=1/3/8
# name:forms:options of full
TENSORRT_TOYS := \
    "atss:raw decode full:--max-candidates 1000" \
    "retinanet:raw full:--max-candidates 1000" \
    "yolox:raw full:--max-candidates 1000" \
    "decoupled_solo:raw full:--max-candidates 300" \
    "solov2:raw full:--max-candidates 300" \
    "rtdetr:raw full:" \
    "deformable_detr:full:" \
    "mask_rcnn:full:--max-candidates 500 --max-proposals 500"
tensorrt-exports: $(ENV)
	@for model in $(TENSORRT_TOYS); do
	    IFS=: read -r name forms extra <<<"$$model"
	    checkpoint=demo/checkpoints/$${name}_toy.pth
	    [ -f $$checkpoint ] || { echo "$$checkpoint: not there, left out"; continue; }
	    for form in $$forms; do
	        options=; case $$form in full) options=$$extra;; esac
	        $(RUN) tools/deployment/pytorch2onnx.py configs/demo/$${name}_toy.py $$checkpoint --postprocess $$form \
	            $$options --output-file $(TENSORRT)/$$name/$$form.onnx
	    done
	done
	$(RUN) tools/deployment/pytorch2onnx.py $(STREAM).py $(STREAM_CKPT) --output-file $(TENSORRT)/stream_petr
	$(RUN) tools/deployment/pytorch2onnx.py $(FUSION).py $(FUSION_CKPT) --sparse-form tables \
	    --output-file $(TENSORRT)/bevfusion
	$(RUN) tools/deployment/pytorch2onnx.py $(LIDAR).py $(LIDAR_CKPT) --sparse-form tables \
	    --output-file $(TENSORRT)/centerpoint
tensorrt-table: tensorrt-exports
	@$(RUN) tools/deployment/onnx2tensorrt.py $(TENSORRT)/*/*.onnx --sm $(TENSORRT_SM) --table docs/tensorrt.md \
	    --shapes N=100/3000/20000 $(SITES) $(CELLS) --constant img_shape ori_shape

# Runs the same exports on the GPU of this machine, in float32 and float16, and judges them: a kit of each.
# ENGINE=onnxruntime-cuda does it in ONNX Runtime and writes the table of docs/engines.md; ENGINE=onnxruntime tries the
# steps without a GPU, and writes $(JUDGED)/table.md.
JUDGED := work_dirs/tensorrt_judged
ENGINE := tensorrt
tensorrt-device: $(ENV)
	@$(RUN) -c 'from mmdeploy_ext.kit.local_run import device_of; print(device_of("$(ENGINE)"))'
tensorrt-judged: tensorrt-device tensorrt-exports
	@case $(ENGINE) in tensorrt) page=docs/tensorrt.md;; onnxruntime-cuda) page=docs/engines.md;; *) page=$(JUDGED)/table.md;; esac
	judged() { # NAME FILE|FOLDER CONFIG CHECKPOINT
	    rm -rf $(JUDGED)/$$1
	    $(RUN) -m mmdeploy_ext kit $$2 $$3 $$4 --out $(JUDGED)/$$1/kit || return 0
	    echo "$$1"
	    for precision in fp32 fp16; do
	        out=$(JUDGED)/$$1/$$precision
	        $(RUN) -m mmdeploy_ext judge $(JUDGED)/$$1/kit $$out --run $(ENGINE) --precision $$precision \
	            --json $$out.json >$$out.log 2>&1 || true
	        tail -1 $$out.log
	    done; }
	for file in $(TENSORRT)/*/{raw,decode,full}.onnx; do
	    [ -f $$file ] || continue
	    name=$$(basename $$(dirname $$file))
	    judged $$name/$$(basename $$file .onnx) $$file configs/demo/$${name}_toy.py demo/checkpoints/$${name}_toy.pth
	done
	judged stream_petr $(TENSORRT)/stream_petr $(STREAM).py $(STREAM_CKPT)
	judged bevfusion $(TENSORRT)/bevfusion $(FUSION).py $(FUSION_CKPT)
	judged centerpoint $(TENSORRT)/centerpoint $(LIDAR).py $(LIDAR_CKPT)
	$(RUN) docs/_pages/judged_kits.py $(JUDGED) $$page

# The same of full-size models with seeded weights, on one architecture.
TENSORRT_FULL := work_dirs/tensorrt_full
FULL_SIZE := \
    atss_r50:configs/atss/atss.py:608:608:raw,decode,full:1000 \
    solov2_light_r34:configs/solov2/solov2_light_r34.py:448:672:raw,full:500 \
    rtdetr_r18vd:configs/rtdetr/rtdetr_r18vd.py:640:640:raw,full: \
    solov2_r50:configs/solov2/solov2_r50.py:800:1344:raw,full:500 \
    decoupled_solo_r50:configs/solo/decoupled_solo_r50.py:800:1344:raw,full:500 \
    solo_r50:configs/solo/solo_r50.py:800:1344:raw,full:500 \
    rtdetr_r50vd:configs/rtdetr/rtdetr_r50vd.py:640:640:raw,full:
FULL_STREAM := projects/configs/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py
FULL_LIDAR := projects/configs/BEVFusion/centerpoint_0075voxel_second_secfpn_nus.py
FULL_FUSION := projects/configs/BEVFusion/bevfusion_camera_lidar_r50_nus.py
tensorrt-table-full: $(ENV)
	@seeded() { mkdir -p $(TENSORRT_FULL)/$$1; [ -f $(TENSORRT_FULL)/$$1/seeded.pth ] || \
	    $(RUN) -m mmdeploy_ext synthetic seeded $$2 $(TENSORRT_FULL)/$$1/seeded.pth; }
	for model in $(FULL_SIZE); do
	    IFS=: read -r name config height width forms candidates <<<"$$model"
	    seeded $$name $$config
	    for form in $${forms//,/ }; do
	        more="--postprocess $$form"
	        case $$form in full) [ -z "$$candidates" ] || more="$$more --max-candidates $$candidates";; esac
	        $(RUN) tools/deployment/pytorch2onnx.py $$config $(TENSORRT_FULL)/$$name/seeded.pth --shape $$height $$width \
	            $$more --output-file $(TENSORRT_FULL)/$$name/$$form.onnx
	    done
	done
	seeded stream_petr_r50 $(FULL_STREAM)
	$(RUN) tools/deployment/pytorch2onnx.py $(FULL_STREAM) $(TENSORRT_FULL)/stream_petr_r50/seeded.pth \
	    --output-file $(TENSORRT_FULL)/stream_petr_r50
	seeded centerpoint $(FULL_LIDAR)
	$(RUN) tools/deployment/export_scn.py $(FULL_LIDAR) $(TENSORRT_FULL)/centerpoint/seeded.pth --target portable \
	    --form tables --output-file $(TENSORRT_FULL)/centerpoint/scn_tables.onnx
	seeded bevfusion_r50 $(FULL_FUSION)
	$(RUN) tools/deployment/pytorch2onnx.py $(FULL_FUSION) $(TENSORRT_FULL)/bevfusion_r50/seeded.pth \
	    --sparse-form tables --output-file $(TENSORRT_FULL)/bevfusion_r50
	rm $(TENSORRT_FULL)/bevfusion_r50/{rig,depth}.onnx # of float64
	$(RUN) tools/deployment/onnx2tensorrt.py $(TENSORRT_FULL)/*/*.onnx --sm 86 --table docs/tensorrt.md --mark 'full size' \
	    --shapes N=1000/40000/120000 $(foreach level,0 1 2 3 4,M$(level)=1000/20000/200000) \
	    R=40000/115000/250000 R2=10000/50000/125000 R3=100/2000/4000 W=1/13/64 --constant img_shape ori_shape

# Files are not split: what a file's tests share is made once. The number of processes: tests/conftest.py.
# Every process of the tests reads what the first has compiled, also where the shell asks for no .pyc files.
PARALLEL := -n auto --dist loadfile
test test-fast test-matrix: export PYTHONDONTWRITEBYTECODE :=
test: $(ENV)
	$(RUN) -m pytest tests $(PARALLEL) --durations=20 -ra $(PYTEST_ARGS)

# What needs neither a trained model nor long set-ups, for who is at work on something.
FAST := {layout,guards,docs}.py
FAST_FOLDERS := {contract,engines,evaluate,families,graph,lint,preprocess,weights}
test-fast: $(ENV)
	$(RUN) -m pytest tests/test_$(FAST) tests/mmdeploy_ext/$(FAST_FOLDERS) $(PARALLEL) --durations=5 $(PYTEST_ARGS)

test-matrix: $(ENV)
	$(RUN) -m pytest tests -m matrix --resume $(PARALLEL) --durations=20 -ra $(PYTEST_ARGS)

demo: $(ENV)
	$(RUN) tools/demo/demo.py $(DEMO_ARGS)

STREAM := projects/configs/StreamPETR/stream_petr_toy
STREAM_CKPT := demo/checkpoints/stream_petr_toy.pth
demo-stream: $(ENV)
	$(RUN) -m mmdeploy_ext synthetic nuscenes --root data/toy_nuscenes
	[ -f data/toy_nuscenes/toy_nuscenes2d_temporal_infos_val.pkl ] || \
	    $(RUN) tools/create_data.py nuscenes --root-path data/toy_nuscenes --extra-tag toy_nuscenes
	$(RUN) tools/test.py $(STREAM)_pth.py $(STREAM_CKPT) --eval bbox
	$(RUN) tools/test.py $(STREAM)_onnx.py $(STREAM_CKPT) --eval bbox
	$(RUN) tools/deployment/pytorch2onnx.py $(STREAM).py $(STREAM_CKPT) --output-file work_dirs/demo_stream/graphs \
	    --verify --frames 120 --report work_dirs/demo_stream
	$(RUN) tools/demo/streampetr_video.py $(STREAM).py $(STREAM_CKPT) --onnx work_dirs/demo_stream/graphs \
	    --engine both --out work_dirs/demo_stream/drive.mp4

LIDAR := projects/configs/BEVFusion/centerpoint_toy
LIDAR_CKPT := demo/checkpoints/centerpoint_toy.pth
LIDAR_SWEEP := data/toy_nuscenes/samples/LIDAR_TOP/toy000-scene-0003__LIDAR_TOP
demo-lidar: $(ENV)
	$(RUN) -m mmdeploy_ext synthetic nuscenes --root data/toy_nuscenes
	[ -f data/toy_nuscenes/toy_nuscenes_infos_val.pkl ] || \
	    $(RUN) tools/create_data.py nuscenes --root-path data/toy_nuscenes --extra-tag toy_nuscenes
	$(RUN) tools/test.py $(LIDAR)_pth.py $(LIDAR_CKPT) --eval bbox
	$(RUN) tools/test.py $(LIDAR)_onnx.py $(LIDAR_CKPT) --eval bbox
	$(RUN) tools/deployment/pytorch2onnx.py $(LIDAR).py $(LIDAR_CKPT) --output-file work_dirs/demo_lidar/graphs \
	    --verify --report work_dirs/demo_lidar
	sweeps=($(LIDAR_SWEEP)__*.pcd.bin)
	$(RUN) tools/demo/lidar_demo.py "$${sweeps[0]}" --onnx work_dirs/demo_lidar/graphs --out work_dirs/demo_lidar/sweep.png

FUSION := projects/configs/BEVFusion/bevfusion_toy
FUSION_CKPT := demo/checkpoints/bevfusion_toy.pth
demo-fusion: $(ENV)
	$(RUN) -m mmdeploy_ext synthetic nuscenes --root data/toy_nuscenes
	[ -f data/toy_nuscenes/toy_nuscenes_infos_val.pkl ] || \
	    $(RUN) tools/create_data.py nuscenes --root-path data/toy_nuscenes --extra-tag toy_nuscenes
	$(RUN) tools/test.py $(FUSION)_pth.py $(FUSION_CKPT) --eval bbox
	$(RUN) tools/test.py $(FUSION)_onnx.py $(FUSION_CKPT) --eval bbox
	$(RUN) tools/deployment/pytorch2onnx.py $(FUSION).py $(FUSION_CKPT) --output-file work_dirs/demo_fusion/graphs \
	    --verify --frames 24 --report work_dirs/demo_fusion
	$(RUN) tools/demo/fusion_video.py $(FUSION).py $(FUSION_CKPT) --onnx work_dirs/demo_fusion/graphs \
	    --engine both --out work_dirs/demo_fusion/drive.mp4

# The page of a kit in a browser on this machine, until Ctrl+C.
WEB := work_dirs/demo_web
demo-web: $(ENV)
	rm -rf $(WEB)
	$(RUN) -m mmdeploy_ext kit demo/atss_toy.onnx configs/demo/atss_toy.py demo/checkpoints/atss_toy.pth --out $(WEB)
	$(RUN) -m mmdeploy_ext kit --serve $(WEB) --open

# All families at full size on every engine that is here: docs/benchmarks.md. See `benchmark_all.py --help`.
BENCHMARK_ARGS ?=
benchmark: $(ENV)
	$(RUN) tools/analysis_tools/benchmark_all.py $(BENCHMARK_ARGS)

# Hours of CPU time the first time; a run that was stopped goes on. See `zoo.py --help`.
ZOO_ARGS ?=
zoo: $(ENV)
	$(RUN) tools/analysis_tools/zoo.py $(ZOO_ARGS)

doctor: $(ENV)
	$(RUN) -m mmdeploy_ext.compat.doctor

# The generator goes into the same environment; constraints keep every pinned package as it is.
SITE := build/site
site: $(if $(ENV),$(STAGE_VENV))
	@mkdir -p build
	$(RUN) -c 'import furo, myst_parser, sphinx' 2>/dev/null || $(RUN) -m pip install --quiet --disable-pip-version-check \
	    -r requirements-docs.txt -c requirements-build.txt -c requirements-torch.txt
	$(RUN) -m sphinx -q -W --keep-going -j auto -c docs/_site -d build/site-cache . $(SITE)
	echo 'site: $(SITE)/index.html'

lint: $(ENV)
	$(RUN) -m ruff check .

clean:
	rm -rf work_dirs build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(MMDET3) $(ROTATE)
