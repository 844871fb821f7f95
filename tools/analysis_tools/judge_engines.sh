#!/usr/bin/env bash
# Export the trained toys, make a kit of each, run it on an engine of this machine in float32 and float16, and judge it:
# judge_engines.sh PYTHON ENGINE, for example .venv/bin/python tensorrt. Prints the table.
set -euo pipefail
python=$1 engine=$2 out=work_dirs/judged_$2
"$python" -c "from mmdeploy_ext.bench.kit.local_run import device_of; print(device_of('$engine'))"
judged() { # NAME CONFIG CHECKPOINT [EXPORT OPTIONS]
    local name=$1 config=$2 checkpoint=$3 file=$out/$1/model; shift 3
    case $name in */*) file=$file.onnx;; esac
    "$python" tools/deployment/pytorch2onnx.py "$config" "$checkpoint" "$@" --out "$file"
    "$python" -m mmdeploy_ext kit "$config" "$checkpoint" "$file" --out "$out/$name/kit"
    for precision in fp32 fp16; do
        "$python" -m mmdeploy_ext judge "$out/$name/kit" "$out/$name/$precision" --run "$engine" --precision $precision \
            --json "$out/$name/$precision.json" >"$out/$name/$precision.log" 2>&1 || true
        echo "$name: $(tail -1 "$out/$name/$precision.log")"
    done
}
toy() { judged "$1/$2" "configs/demo/$1_toy.py" "demo/checkpoints/$1_toy.pth" --postprocess "$2" "${@:3}"; }
rm -rf "$out"
for name in atss retinanet yolox; do toy $name raw; toy $name full --max-candidates 1000; done
for name in decoupled_solo solov2; do toy $name raw; toy $name full --max-candidates 300; done
toy atss decode; toy rtdetr raw; toy rtdetr full; toy deformable_detr full
toy mask_rcnn full --max-candidates 500 --max-proposals 500
judged stream_petr projects/configs/StreamPETR/stream_petr_toy.py demo/checkpoints/stream_petr_toy.pth
judged centerpoint projects/configs/BEVFusion/centerpoint_toy.py demo/checkpoints/centerpoint_toy.pth --sparse-form tables
judged bevfusion projects/configs/BEVFusion/bevfusion_toy.py demo/checkpoints/bevfusion_toy.pth --sparse-form tables
"$python" -m dev.pages.judged_kits "$out"
