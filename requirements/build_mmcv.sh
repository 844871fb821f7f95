#!/usr/bin/env bash
# Compile mmcv-full 1 or mmcv 2 with its operators, and print the wheel: build_mmcv.sh PYTHON PACKAGE VERSION CUDA
# (0 or 1). The wheel is kept per Python and torch build. Sources and objects stay beside it until it is whole, so that
# an interrupted compilation goes on; the lock lets a second clone wait for the first one's wheel.
set -euo pipefail
python=$(realpath --no-symlinks "$1") package=$2 version=$3 cuda=$4
say() { echo "[env]     $*" >&2; }

tag=$("$python" -c 'import importlib.metadata as m, sys; print("cp%d%d-torch" % sys.version_info[:2] + m.version("torch"))')
cache=${XDG_CACHE_HOME:-$HOME/.cache}/mm2onnx/wheels/$tag
[ "$cuda" = 0 ] || cache=$cache-cuda
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock -n 9 || { say 'another make is compiling it; waiting'; flock 9; }
wheel() { compgen -G "$cache/${package//-/_}-$version-*.whl"; }
if wheel; then say "wheel from $cache"; exit; fi

src=$cache/src/$package-$version log=$cache/mmcv_build.log
if [ ! -d "$src" ]; then
    rm -rf "$cache"/{src,src.part,sdist}
    "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary "$package" -d "$cache/sdist" \
        "$package==$version" >&2
    mkdir -p "$cache/src.part"
    tar -xzf "$cache"/sdist/"$package"-*.tar.gz -C "$cache/src.part"
    # Of the 10 s of a file 9 are PyTorch's headers: 53 files in one take 19 s. Three of the kernels define names that
    # others define too.
    [ "$cuda" = 1 ] || for folder in "$cache/src.part/$package-$version"/mmcv/ops/csrc/pytorch{,/cpu}; do
        (cd "$folder"; mkdir whole
        for file in *.cpp; do
            case $folder/$file in
                */pybind.cpp|*/cpu/bezier_align.cpp|*/cpu/psamask.cpp|*/cpu/roi_align_rotated.cpp|*/cpu/rotated_*.cpp) ;;
                *) mv "$file" whole/; echo "#include \"whole/$file\"" >>joined.cpp ;;
            esac
        done)
    done
    mv "$cache/src.part" "$cache/src"; rm -rf "$cache/sdist"
fi
rm -rf "$cache/wheel.part"
say "compiling (1 to 2 minutes on 2 cores; log: $log)"
# ninja's "[1/6]" lines in the log are the progress. Debug information, which Python's own flags ask for, is half of the
# time.
(cd "$src"; export PATH="$(dirname "$python"):$PATH" CFLAGS='-O2 -g0' MMCV_WITH_OPS=1 FORCE_CUDA=$cuda
 export MAX_JOBS=${MAX_JOBS:-$(nproc)}; [ "$cuda" = 1 ] || export CUDA_VISIBLE_DEVICES=
 "$python" setup.py bdist_wheel -d "$cache/wheel.part") >"$log" 2>&1 9>&- &
builder=$!
trap 'kill $builder 2>/dev/null || true' EXIT
while kill -0 $builder 2>/dev/null; do
    for _ in {1..20}; do sleep 1; kill -0 $builder 2>/dev/null || break; done
    say "$SECONDS s  $(grep -oE '^\[[0-9]+/[0-9]+\]' "$log" | tail -1 || true)"
done
wait $builder || { tail -30 "$log" >&2; echo "error: $package did not compile; the log is $log" >&2; exit 1; }
mv "$cache"/wheel.part/*.whl "$cache/"
rm -rf "$cache"/{src,wheel.part}
wheel
