/* Run the inputs of this kit by ONNX Runtime's C API, from the folder of the kit:
 *
 *     cc run_c_api.c -I INCLUDE -L LIB -lonnxruntime -o run_c_api
 *     ./run_c_api OUTPUTS
 *
 * INCLUDE has onnxruntime_c_api.h, LIB has libonnxruntime. It reads manifest.txt and writes OUTPUTS/CASE/NAME.bin.
 * Afterwards, where mm2onnx is: mm2onnx judge KIT OUTPUTS --told 'DEVICE, ENGINE'.
 */
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_AXES 16
#define MAX_WORD 1024

typedef struct {
    char name[MAX_WORD], file[MAX_WORD]; /* the name as in names of files, with %2F for a slash */
    ONNXTensorElementDataType type;
    size_t axes, bytes;
    int64_t shape[MAX_AXES];
} Tensor;

typedef struct {
    char name[MAX_WORD], file[MAX_WORD];
    Tensor *inputs, *outputs;
    size_t input_count, output_count;
} Case;

typedef struct { /* an output that was computed last under its name */
    char name[MAX_WORD];
    OrtValue *value;
} Computed;

static const struct { const char *name; ONNXTensorElementDataType type; size_t size; } DTYPES[] = {
    {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, 4},   {"float64", ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, 8},
    {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, 2}, {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, 8},
    {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, 4},     {"int16", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16, 2},
    {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, 1},       {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, 1},
    {"bool", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, 1},
};

static const OrtApi *ort;
static Case *cases;
static size_t case_count;
static Computed *computed;
static size_t computed_count;
static struct { char file[MAX_WORD]; OrtSession *session; } sessions[64];
static size_t session_count;

static void fail(const char *what, const char *which) {
    fprintf(stderr, "%s: %s\n", what, which);
    exit(1);
}

static void check(OrtStatus *status) {
    if (status != NULL) fail("ONNX Runtime", ort->GetErrorMessage(status));
}

static size_t size_of(ONNXTensorElementDataType type) {
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (DTYPES[i].type == type) return DTYPES[i].size;
    fail("manifest.txt", "an element type that this program does not know");
    return 0;
}

/* Read the words of a tensor: NAME DTYPE AXES SIZE... and, of an input, FILE. */
static void read_tensor(FILE *lines, Tensor *tensor, int has_file) {
    char dtype[MAX_WORD];
    if (fscanf(lines, "%1023s %1023s %zu", tensor->name, dtype, &tensor->axes) != 3 || tensor->axes > MAX_AXES)
        fail("manifest.txt", "is cut short");
    tensor->type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    for (size_t i = 0; i < sizeof DTYPES / sizeof *DTYPES; i++)
        if (!strcmp(DTYPES[i].name, dtype)) tensor->type = DTYPES[i].type;
    tensor->bytes = size_of(tensor->type);
    for (size_t i = 0; i < tensor->axes; i++) {
        long long size;
        if (fscanf(lines, "%lld", &size) != 1) fail("manifest.txt", "is cut short");
        tensor->shape[i] = size;
        tensor->bytes *= (size_t)size;
    }
    if (has_file && fscanf(lines, "%1023s", tensor->file) != 1) fail("manifest.txt", "is cut short");
}

/* Return the name of a tensor in the graph, from that in names of files: %2F becomes a slash. */
static char *in_graph(const char *stem) {
    char *name = malloc(strlen(stem) + 1), *end = name;
    for (unsigned code; *stem; end++) {
        if (*stem == '%' && sscanf(stem + 1, "%2x", &code) == 1) *end = (char)code, stem += 3;
        else *end = *stem++;
    }
    *end = 0;
    return name;
}

static OrtSession *session_of(OrtEnv *env, OrtSessionOptions *options, const char *file) {
    for (size_t i = 0; i < session_count; i++)
        if (!strcmp(sessions[i].file, file)) return sessions[i].session;
    strcpy(sessions[session_count].file, file);
    check(ort->CreateSession(env, file, options, &sessions[session_count].session));
    return sessions[session_count++].session;
}

static OrtValue *read_input(const Tensor *tensor, OrtMemoryInfo *memory) {
    FILE *file = fopen(tensor->file, "rb");
    void *values = malloc(tensor->bytes ? tensor->bytes : 1); /* lives until the program ends */
    if (!file || fread(values, 1, tensor->bytes, file) != tensor->bytes) fail("cannot be read", tensor->file);
    fclose(file);
    OrtValue *value;
    check(ort->CreateTensorWithDataAsOrtValue(
        memory, values, tensor->bytes, tensor->shape, tensor->axes, tensor->type, &value));
    return value;
}

static void write_output(const char *folder, const char *name, const Tensor *tensor, OrtValue *value) {
    char path[4 * MAX_WORD];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/%s.bin", folder, name, tensor->name);
    OrtTensorTypeAndShapeInfo *info;
    size_t count;
    void *values;
    check(ort->GetTensorTypeAndShape(value, &info));
    check(ort->GetTensorShapeElementCount(info, &count));
    check(ort->GetTensorMutableData(value, &values));
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(values, size_of(tensor->type), count, file) != count) fail("cannot be written", path);
    fclose(file);
    ort->ReleaseTensorTypeAndShapeInfo(info);
}

static OrtValue **value_of(const char *name) {
    for (size_t i = 0; i < computed_count; i++)
        if (!strcmp(computed[i].name, name)) return &computed[i].value;
    computed = realloc(computed, (computed_count + 1) * sizeof *computed);
    strcpy(computed[computed_count].name, name);
    computed[computed_count].value = NULL;
    return &computed[computed_count++].value;
}

/* Run a case; `links` are pairs of the names of an input and of the output that is fed in place of its file. */
static void run(OrtSession *session, OrtMemoryInfo *memory, const Case *it, char (*links)[2][MAX_WORD],
                size_t link_count, const char *folder, const char *written_as) {
    const char *names[256], *output_names[256];
    OrtValue *values[256], *results[256] = {NULL};
    for (size_t i = 0; i < it->input_count; i++) {
        names[i] = in_graph(it->inputs[i].name);
        values[i] = NULL;
        for (size_t k = 0; k < link_count; k++)
            if (!strcmp(links[k][0], it->inputs[i].name)) values[i] = *value_of(links[k][1]);
        if (values[i] == NULL) values[i] = read_input(&it->inputs[i], memory);
    }
    for (size_t i = 0; i < it->output_count; i++) output_names[i] = in_graph(it->outputs[i].name);
    check(ort->Run(session, NULL, names, (const OrtValue *const *)values, it->input_count, output_names,
                   it->output_count, results));
    for (size_t i = 0; i < it->output_count; i++) {
        if (written_as) write_output(folder, written_as, &it->outputs[i], results[i]);
        *value_of(it->outputs[i].name) = results[i];
    }
}

static Case *case_of(const char *name) {
    for (size_t i = 0; i < case_count; i++)
        if (!strcmp(cases[i].name, name)) return &cases[i];
    fail("manifest.txt has no case", name);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2) fail("usage", "run_c_api OUTPUTS, from the folder of the kit");
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (ort == NULL) fail("ONNX Runtime", "the library is older than its header");
    OrtEnv *env;
    OrtSessionOptions *options;
    OrtMemoryInfo *memory;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "kit", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    mkdir(argv[1], 0777);

    FILE *lines = fopen("manifest.txt", "r");
    if (lines == NULL) fail("manifest.txt", "run this in the folder of the kit");
    char word[MAX_WORD], frame[MAX_WORD] = "", links[256][2][MAX_WORD];
    size_t link_count = 0;
    Case *step = NULL; /* of the frame, which runs when its links are read */
    while (fscanf(lines, "%1023s", word) == 1 && strcmp(word, "frame")) {
        if (!strcmp(word, "case")) {
            cases = realloc(cases, (case_count + 1) * sizeof *cases);
            Case *it = memset(&cases[case_count++], 0, sizeof *cases);
            if (fscanf(lines, "%1023s %1023s", it->name, it->file) != 2) fail("manifest.txt", "is cut short");
        } else {
            Case *it = &cases[case_count - 1];
            int is_input = !strcmp(word, "input");
            Tensor **list = is_input ? &it->inputs : &it->outputs;
            size_t *count = is_input ? &it->input_count : &it->output_count;
            *list = realloc(*list, (*count + 1) * sizeof **list);
            read_tensor(lines, &(*list)[(*count)++], is_input);
        }
    }
    for (size_t i = 0; i < case_count; i++) /* each file on inputs of PyTorch */
        run(session_of(env, options, cases[i].file), memory, &cases[i], NULL, 0, argv[1], cases[i].name);

    computed_count = 0;
    for (int has_word = !feof(lines); step || has_word;) { /* each file on what those before it computed */
        int begins = !has_word || strcmp(word, "computed");
        if (begins && step) {
            int is_last = !has_word || !strcmp(word, "frame");
            run(session_of(env, options, step->file), memory, step, links, link_count, argv[1],
                is_last ? frame : NULL);
            step = NULL;
        }
        if (!has_word) break;
        if (!strcmp(word, "frame")) {
            if (fscanf(lines, "%1023s", frame) != 1) fail("manifest.txt", "is cut short");
        } else if (!strcmp(word, "step")) {
            if (fscanf(lines, "%1023s", word) != 1) fail("manifest.txt", "is cut short");
            step = case_of(word), link_count = 0;
        } else if (fscanf(lines, "%1023s %1023s", links[link_count][0], links[link_count][1]) == 2) {
            link_count++;
        }
        has_word = fscanf(lines, "%1023s", word) == 1;
    }

    char path[2 * MAX_WORD];
    snprintf(path, sizeof path, "%s/kit.txt", argv[1]);
    FILE *from = fopen("kit.txt", "r"), *to = fopen(path, "w");
    if (from && to && fscanf(from, "%1023s", word) == 1) fprintf(to, "%s\n", word), fclose(to);
    return 0;
}
