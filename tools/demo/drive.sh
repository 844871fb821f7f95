#!/usr/bin/env bash
# A trained toy on the generated nuScenes: both metrics, export, proof and a film: drive.sh PYTHON CONFIG CHECKPOINT OUT FRAMES
set -euo pipefail
python=$1 config=$2 checkpoint=$3 out=$4 frames=$5
"$python" -m mmdeploy_ext synthetic nuscenes --out data/toy_nuscenes
[ -f data/toy_nuscenes/toy_nuscenes_infos_val.pkl ] || \
    "$python" tools/create_data.py nuscenes --root-path data/toy_nuscenes --extra-tag toy_nuscenes
"$python" tools/test.py "${config}_pth.py" "$checkpoint" --eval bbox
"$python" tools/test.py "${config}_onnx.py" "$checkpoint" --eval bbox
"$python" tools/deployment/pytorch2onnx.py "$config.py" "$checkpoint" --out "$out/graphs" --verify \
    ${frames:+--frames "$frames"} --report "$out"
case $config in
    *centerpoint*)
        sweeps=(data/toy_nuscenes/samples/LIDAR_TOP/toy000-scene-0003__LIDAR_TOP__*.pcd.bin)
        "$python" tools/demo/lidar_demo.py "${sweeps[0]}" --onnx "$out/graphs" --out "$out/sweep.png" ;;
    *bevfusion*)
        "$python" tools/demo/fusion_video.py "$config.py" "$checkpoint" --onnx "$out/graphs" --engine both --out "$out/drive.mp4" ;;
    *)
        "$python" tools/demo/streampetr_video.py "$config.py" "$checkpoint" --onnx "$out/graphs" --engine both --out "$out/drive.mp4" ;;
esac
