/* Print the detections of a picture by ONNX Runtime's C++ API: a line of class, score and x1 y1 x2 y2 each.
 *
 *     c++ -std=c++17 detect.cpp -I INCLUDE -L LIB -lonnxruntime -o detect
 *     ./detect MODEL.onnx PICTURE.ppm [SCALE]
 *
 * INCLUDE has onnxruntime_cxx_api.h, LIB has libonnxruntime. MODEL.onnx is exported with --input uint8-nhwc
 * --channels rgb --required-inputs --outputs efficient-nms. PICTURE.ppm (P6, 8 bits) is the original resized by
 * SCALE (default: 1); boxes are in pixels of the original.
 */
#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

int main(int argc, char **argv) try {
    if (argc < 3) throw std::runtime_error("usage: detect MODEL.onnx PICTURE.ppm [SCALE]");
    const float scale = argc > 3 ? std::stof(argv[3]) : 1.0f;
    std::ifstream file(argv[2], std::ios::binary);
    std::string magic;
    int64_t width = 0, height = 0, largest = 0;
    file >> magic >> width >> height >> largest;
    file.get();
    if (!file || magic != "P6" || largest != 255) throw std::runtime_error(std::string(argv[2]) + ": expected P6, 255");

#ifndef _WIN32
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "detect");
    Ort::Session session(env, argv[1], Ort::SessionOptions{});
    const Ort::TypeInfo type = session.GetInputTypeInfo(0);
    std::vector<int64_t> shape = type.GetTensorTypeAndShapeInfo().GetShape(); /* N, H, W, 3; -1: any size */
    shape[0] = 1;
    if (shape[1] < 0) shape[1] = (height + 31) / 32 * 32;
    if (shape[2] < 0) shape[2] = (width + 31) / 32 * 32;
    if (height > shape[1] || width > shape[2]) throw std::runtime_error("the picture is larger than the input");
    std::vector<uint8_t> pixels(shape[1] * shape[2] * 3); /* the picture is in the upper left */
    for (int64_t row = 0; row < height; row++)
        file.read(reinterpret_cast<char *>(&pixels[row * shape[2] * 3]), width * 3);
    if (!file) throw std::runtime_error(std::string(argv[2]) + ": is cut short");

    std::array<float, 2> img_shape{static_cast<float>(height), static_cast<float>(width)};
    std::array<float, 4> scale_factor{scale, scale, scale, scale};
    const std::array<int64_t, 2> two{1, 2}, four{1, 4};
    const Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::array<Ort::Value, 3> inputs{
        Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size()),
        Ort::Value::CreateTensor<float>(memory, img_shape.data(), 2, two.data(), 2),
        Ort::Value::CreateTensor<float>(memory, scale_factor.data(), 4, four.data(), 2)};
    const char *names[] = {"input", "img_shape", "scale_factor"};
    const char *wanted[] = {"num_dets", "det_boxes", "det_scores", "det_classes"};
    std::vector<Ort::Value> outputs = session.Run({}, names, inputs.data(), 3, wanted, 4);

    const int32_t count = *outputs[0].GetTensorMutableData<int32_t>();
    const float *box = outputs[1].GetTensorMutableData<float>();
    const float *scores = outputs[2].GetTensorMutableData<float>();
    const int32_t *classes = outputs[3].GetTensorMutableData<int32_t>();
    for (int32_t i = 0; i < count; i++, box += 4)
        std::printf("%d %.4f %.2f %.2f %.2f %.2f\n", classes[i], scores[i], box[0], box[1], box[2], box[3]);
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
