/* Run the voxels of this kit in NVIDIA's libspconv, from the folder of the kit: ./run_libspconv OUTPUTS PRECISION
 *
 * PRECISION is fp16 or int8. The commands that compile it are in README.md: it needs the engine, its headers and its
 * ONNX parser. It reads manifest.txt and writes OUTPUTS/CASE/dense.bin, the dense map of each case, in float16.
 * Afterwards, where mm2onnx is: mm2onnx judge KIT OUTPUTS --told 'DEVICE, libspconv VERSION'.
 */
#include <cuda_runtime.h>
#include <sys/stat.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "onnx-parser.hpp"

struct Tensor {
    std::vector<int64_t> shape;
    std::vector<char> bytes; /* of an input */
};

struct Case {
    std::string name, file;
    std::map<std::string, Tensor> tensors; /* by name: features, coordinates, grid, dense */
};

static void fail(const std::string& what) {
    fprintf(stderr, "run_libspconv: %s\n", what.c_str());
    exit(1);
}

static void check(cudaError_t status, const char* call) {
    if (status != cudaSuccess) fail(std::string(call) + ": " + cudaGetErrorString(status));
}

static std::vector<char> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail(path + " cannot be read");
    return {std::istreambuf_iterator<char>(file), {}};
}

/* Read manifest.txt: lines of words, "case NAME FILE", then its "input" and "output" lines. */
static std::vector<Case> read_cases() {
    std::ifstream lines("manifest.txt");
    std::vector<Case> cases;
    for (std::string word; lines >> word;) {
        if (word == "case") {
            cases.emplace_back();
            lines >> cases.back().name >> cases.back().file;
        } else if (word == "input" || word == "output") {
            std::string name, dtype, file;
            size_t axes;
            lines >> name >> dtype >> axes;
            Tensor& tensor = cases.back().tensors[name];
            tensor.shape.resize(axes);
            for (auto& size : tensor.shape) lines >> size;
            if (word == "input") {
                lines >> file;
                tensor.bytes = read_file(file);
            }
        } else {
            fail("manifest.txt: unknown word " + word);
        }
    }
    if (cases.empty()) fail("manifest.txt has no case; start this from the folder of the kit");
    return cases;
}

/* The bytes of an input on the GPU, until it goes out of scope. */
struct OnGpu {
    void* data = nullptr;
    explicit OnGpu(const Tensor& tensor) {
        check(cudaMalloc(&data, tensor.bytes.size()), "cudaMalloc");
        check(cudaMemcpy(data, tensor.bytes.data(), tensor.bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    ~OnGpu() { cudaFree(data); }
};

static void run(spconv::Engine& engine, Case& it, const std::string& outputs, cudaStream_t stream) {
    Tensor &features = it.tensors["features"], &coordinates = it.tensors["coordinates"];
    OnGpu features_on_gpu(features), coordinates_on_gpu(coordinates);
    const auto* grid = reinterpret_cast<const int32_t*>(it.tensors["grid"].bytes.data());
    auto* input = engine.input(0);
    input->features().reference(features_on_gpu.data, features.shape, spconv::DataType::Float16);
    input->indices().reference(coordinates_on_gpu.data, coordinates.shape, spconv::DataType::Int32);
    input->set_grid_size({grid[0], grid[1], grid[2]});
    engine.forward(stream);
    check(cudaStreamSynchronize(stream), "forward");

    auto& dense = engine.output(engine.num_output() - 1)->features();
    size_t count = 1;
    for (auto size : it.tensors["dense"].shape) count *= size;
    if (dense.dtype() != spconv::DataType::Float16 || dense.numel != count)
        fail(it.name + ": the engine gave " + std::to_string(dense.numel) + " values, expected " +
             std::to_string(count) + " in float16");
    std::vector<char> values(2 * count);
    check(cudaMemcpy(values.data(), dense.ptr(), values.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    std::string folder = outputs + "/" + it.name;
    mkdir(folder.c_str(), 0777);
    std::ofstream file(folder + "/dense.bin", std::ios::binary);
    if (!file.write(values.data(), values.size())) fail(folder + "/dense.bin cannot be written");
}

int main(int argc, char** argv) {
    std::string precision = argc == 3 ? argv[2] : "";
    if (precision != "fp16" && precision != "int8") fail("usage: ./run_libspconv OUTPUTS fp16|int8");
    auto cases = read_cases();
    mkdir(argv[1], 0777);
    cudaStream_t stream;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    auto kind = precision == "int8" ? spconv::Precision::Int8 : spconv::Precision::Float16;
    auto engine = spconv::load_engine_from_onnx(cases[0].file, kind); /* further arguments differ by version */
    if (!engine) fail("the engine does not load " + cases[0].file);
    for (auto& it : cases) {
        run(*engine, it, argv[1], stream);
        printf("%s\n", it.name.c_str());
    }
    std::ofstream(std::string(argv[1]) + "/kit.txt", std::ios::binary)
        << std::ifstream("kit.txt", std::ios::binary).rdbuf();
    return 0;
}
