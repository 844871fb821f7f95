"""How each command of the documentation is tested: run as it stands, by a test of its own, or why it is not.

The first entry that fits a command counts. `test_documented.py` runs what is to be run, looks that each named
test is there and about the same tool, and that each reason is true of the command.
"""

import dataclasses
import importlib.util
import re
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Entry:
    """Commands that one thing is true of.

    Attributes:
        pattern: what they look like; matches from the beginning.
        run: they are run as they stand, in the order of the page.
        matrix: run among the matrix tests only.
        needs: run only where this optional package is.
        small: replaced in the command before it runs, so that it takes seconds.
        status: the exit status that they have.
        test: the test that runs the same tool.
        why: the reason that they are not run as they stand.
    """

    pattern: str
    run: bool = False
    matrix: bool = False
    needs: str = ''
    small: tuple[tuple[str, str], ...] = ()
    status: int = 0
    test: str = ''
    why: str = ''

    def fits(self, command):
        return re.match(self.pattern, command) is not None

    def runs(self, matrix):
        """Return whether it runs in this suite and environment."""
        there = not self.needs or importlib.util.find_spec(self.needs) is not None
        return self.run and there and matrix >= self.matrix

    def smaller(self, command):
        for long, short in self.small:
            assert long in command, f'{command}: nothing to replace by {short}'
            command = command.replace(long, short)
        return command


REASONS = {
    'installs': ('it installs packages', r'(MMCV_WITH_OPS=1 )?(pip|apt) install |make env'),
    'ruff': ('tests/test_guards.py runs ruff', r'make lint$'),
    'suite': (
        'it is this suite, or a part of it',
        r'make test(-fast|-matrix|-rotate)?$|python -m pytest |python tests/\w+\.py',
    ),
    'steps': ('its steps are commands of their own, each tested', r'make (demo(-\w+)?)$'),
    'site': ('tests/test_site.py runs its command', r'make site$'),
    'doctor': ('it runs python -m mmdeploy_ext.compat.doctor', r'make doctor$'),
    'minutes': (
        'it makes data or trains for minutes',
        r'(python (-m projects\.toydata\.|tools/train\.py)|mm2onnx synthetic )',
    ),
    'published': (
        'it needs the product of a training',
        r'python tools/model_converters/publish_model\.py work_d',
    ),
    'placeholder': (
        'it has a place for a file of the user',
        r'.*(\b[A-Z]{4,}\b(?![=_])|SWEEP|\$ORIGINAL|from_paddle| a\.onnx b\.onnx)',
    ),
    'own family': ('it is of the package that the page makes', r'.*circles\.(pth|onnx)'),
    'gpu': ('it needs a GPU', r'.*(CUDAExecutionProvider|onnxruntime-cuda)'),
    'server': ('it serves until somebody ends it', r'mm2onnx kit --serve '),
    'npm': ('it downloads a package of npm', r'mm2onnx kit .*--(web|single-file)'),
    'own module': ('it is of the module that the page makes', r'.*my_module\.py:make'),
    'shell': ('it is of a shell in which people type', r'eval '),
    'bf16': ('it needs a CPU with bfloat16', r'.*(--inference-precision bf16|openvino-bf16)'),
    'machines': ('it needs several machines or Slurm', r'NNODES=|GPUS=\d+ tools/slurm_test'),
    'real data': ('it needs a real data set', r'.*data/(coco|nuscenes)/'),
    'full size': (
        'a network of full size takes minutes',
        r'.*(r50|r34|r18|bevfusion|lidar\.|\$CONFIG work_dirs/)',
    ),
    'data set': (
        'it goes over a whole generated data set',
        r'.*(--eval|toy_coco|toy_nuscenes|few_sweeps|--frames 120|stream|_video|centerpoint_toy|autoware_toy|'
        r'\$LOOP)',
    ),
    'zoo': ('it goes through many configs for hours, or takes what that found', r'.*zoo'),
    'mmrotate': (
        'it needs mmrotate, with which `make test-rotate` runs the test',
        r'.*(mmrotate|work_dirs/rotated)',
    ),
    'mmdet 3': (
        'it needs the optional mmdet 3, or takes what was measured with it',
        r'python -m docs\._pages\.mmdet3\.',
    ),
    'transformers': (
        'it needs transformers, and torchvision with operators of its own',
        r'python -m docs\._pages\.modules\.table ',
    ),
    'quiet': ('it measures, which needs a quiet machine', r'.*(benchmark|exporters)'),
    'long': (
        'it builds, quantises, exports with torch.export or asks every package: more than ten seconds',
        r'mm2onnx doctor'
        r'|python (-m mmdeploy_ext\.compat\.doctor|tools/deployment/(onnx2tensorrt|quantize|int8_table)\.py'
        r'|.*--exporter dynamo)',
    ),
}
"""Reason -> what it says, and what is true of a command that has it."""

TOOLS, PROJECTS, SELF = 'tests/tools/', 'tests/projects/', 'tests/mmdeploy_ext/'
ROTATED = 'projects/mmrotate/tests/'
EXPORT = 'python tools/deployment/(pytorch2onnx|solo2onnx).py '
RTDETR = (
    ('configs/rtdetr/rtdetr_r18vd.py', 'configs/demo/rtdetr_toy.py'),
    ('work_dirs/r18vd.pth', 'demo/checkpoints/rtdetr_toy.pth'),
)
TOY = r'(\$CONFIG \$CKPT|configs/demo/atss_toy.py demo/checkpoints/atss_toy.pth) '
OF_PAGES = {
    'docs/kit.md': (
        Entry(
            'mm2onnx kit --serve ',
            why='server',
            test=SELF + 'kit/test_serving.py::test_the_command_serves_without_pytorch',
        ),
        Entry(
            'mm2onnx kit .*--single-file',
            why='npm',
            test=SELF + 'kit/test_page.py::test_a_single_file_runs_from_disk',
        ),
        Entry(
            'mm2onnx kit FOLDER ',
            why='placeholder',
            test=SELF + 'kit/test_frames_kit.py::test_the_command_writes_a_kit_of_a_folder',
        ),
        Entry(
            'mm2onnx kit .*--module ',
            why='own module',
            test=SELF + 'kit/test_module_kit.py::test_samples_are_frames_with_the_state_of_the_module',
        ),
        Entry(
            'mm2onnx judge .*onnxruntime-cuda',
            why='gpu',
            test=SELF + 'kit/test_frames_kit.py::test_cuda_that_is_not_here_is_said_first',
        ),
        Entry(
            'mm2onnx kit .*SWEEP',
            why='placeholder',
            test=SELF + 'kit/test_voxels_kit.py::test_all_voxels_are_within_the_bars_of_the_file',
        ),
        Entry('(mm2onnx (kit|judge)|python work_dirs/kit/run_onnxruntime.py) ', run=True, matrix=True),
    ),
    'docs/prove-module.md': (
        Entry(
            'mm2onnx prove-module ',
            why='own module',
            test=SELF + 'proving/test_prove_module.py::test_the_command_proves_and_refuses',
        ),
    ),
    'docs/half-precision.md': (
        Entry(
            r'python tools/deployment/verify.py .*--inference-precision bf16',
            why='bf16',
            test=SELF + 'contract/test_half_precision.py::test_verify_tells_bf16_of_openvino_by_option',
        ),
        Entry(
            r'python tools/analysis_tools/benchmark.py .*openvino-bf16',
            why='bf16',
            test=SELF + 'benchmark/test_benchmark.py::test_one_run_gives_table_json_chart_and_profile',
        ),
        Entry(
            r'python tools/deployment/verify.py \$CONFIG \$CKPT work_dirs/half.onnx$', run=True, matrix=True
        ),
        Entry(EXPORT + TOY + r'.*half.onnx --precision fp16', run=True, matrix=True),
    ),
    'projects/mmrotate/README.md': (
        Entry(
            r'python -m mm2onnx_mmrotate\.synthetic ',
            why='mmrotate',
            test=ROTATED + 'test_toys.py::test_both_engines_have_the_same_map',
        ),
        Entry(
            r'python -m mm2onnx_mmrotate\.training ',
            why='mmrotate',
            test=ROTATED + 'test_training.py::test_anchors_of_training_are_made_on_the_device_of_the_model',
        ),
        Entry(
            r'mm2onnx export projects/mmrotate/.*/rotated\.onnx --verify',
            why='mmrotate',
            test=ROTATED + 'test_toys.py::test_a_trained_toy_is_proven_with_turned_boxes',
        ),
        Entry(
            r'mm2onnx run work_dirs/rotated\.onnx',
            why='mmrotate',
            test=ROTATED + 'test_toys.py::test_its_boxes_are_drawn_and_written_with_their_corners',
        ),
        Entry(
            r'tools/dist_test_(pth|onnx)\.sh projects/mmrotate/',
            why='mmrotate',
            test=ROTATED + 'test_toys.py::test_both_engines_have_the_same_map',
        ),
        Entry(
            r'mm2onnx export projects/mmrotate/.* --precision fp16',
            why='mmrotate',
            test=ROTATED + 'test_toys.py::test_a_half_file_is_within_its_bars',
        ),
        Entry(
            r"mm2onnx zoo 'mmrotate/",
            why='mmrotate',
            test=ROTATED + 'test_zoo.py::test_the_zoo_has_all_configs_of_mmrotate',
        ),
        Entry(
            r'python -m docs\._pages\.zoo\.rotated work_dirs/rotated_zoo',
            why='mmrotate',
            test=ROTATED + 'test_zoo.py::test_the_page_has_a_row_for_each_model',
        ),
        Entry(
            r'mm2onnx (quantize work_dirs/rotated\w*\.onnx|verify projects/mmrotate/)',
            why='mmrotate',
            test=ROTATED
            + 'test_toys.py::test_an_int8_file_is_within_its_bars_on_pictures_like_those_of_the_training',
        ),
        Entry(
            r'mm2onnx export projects/mmrotate/.*/rotated_regions\.onnx',
            why='mmrotate',
            test=ROTATED + 'test_toys.py::test_a_trained_toy_is_proven_with_turned_boxes',
        ),
    ),
    'docs/tensorrt.md': (
        Entry(
            r'python tools/deployment/verify.py .*/bevfusion_.* --engine tensorrt',
            why='full size',
            test=PROJECTS + 'mmdet3d_plugin/test_centerpoint_export.py::'
            'test_the_folder_is_taken_to_tensorrt_which_wants_a_gpu',
        ),
    ),
    'docs/benchmarks.md': (
        Entry(r'make benchmark$', why='quiet'),
        Entry(
            r'python tools/analysis_tools/benchmark_all.py ',
            why='quiet',
            test=TOOLS + 'test_benchmark_all.py::'
            'test_a_toy_goes_from_checkpoint_to_page_and_a_broken_case_does_not_stop_it',
        ),
        Entry(
            r'python tools/\w+/\w+.py .*work_dirs/benchmark/',
            why='quiet',
            test=TOOLS + 'test_benchmark_all.py::'
            'test_a_toy_goes_from_checkpoint_to_page_and_a_broken_case_does_not_stop_it',
        ),
    ),
}
"""Page -> entries that come first, where the page is there."""
FIRST = tuple(
    entry
    for page, entries in OF_PAGES.items()
    if (Path(__file__).parents[1] / page).is_file()
    for entry in entries
)
ENTRIES = (
    *FIRST,
    # ---- the environment
    Entry(r'(MMCV_WITH_OPS=1 )?(pip|apt) install |make env', why='installs'),
    Entry(r'make test(-fast|-matrix|-rotate)?$', why='suite'),
    Entry(r'make lint$', why='ruff'),
    Entry(r'python -m pytest ', why='suite'),
    Entry(r'python tests/toy_kits\.py ', why='suite'),
    Entry(r'make demo(-stream|-lidar|-fusion)?$', why='steps'),
    Entry(r'make site$', why='site', test='tests/test_site.py::test_no_link_and_no_anchor_dangles'),
    Entry(
        r'make doctor$', why='doctor', test=SELF + 'compat/test_doctor.py::test_exit_status_report_and_json'
    ),
    Entry(
        r'python -m mmdeploy_ext\.compat\.doctor',
        why='long',
        test=SELF + 'compat/test_doctor.py::test_exit_status_report_and_json',
    ),
    # ---- a model of the repository, from the export to the failed verdict
    Entry(r'[A-Z]+=\S+$|LOOP=', run=True),
    Entry(r'python tools/onnx/onnx_with_postprocess.py demo/atss_toy.onnx', run=True),
    Entry(EXPORT + TOY + r'--output-file work_dirs/full.onnx( --verify)?$', run=True),
    Entry(
        EXPORT + TOY + r'--output-file work_dirs/raw.onnx --skip-postprocess --verify$', run=True, matrix=True
    ),
    Entry(EXPORT + TOY + r'.*--opset-version 9$', run=True, status=2),
    Entry(r'python tools/onnx/onnx_with_postprocess.py work_dirs/full.onnx demo/toy.jpg', run=True),
    Entry(r'python tools/onnx/onnx_no_topk_nms.py work_dirs/raw.onnx demo/toy.jpg', run=True, matrix=True),
    Entry(
        r'python tools/deployment/verify.py \$CONFIG \$CKPT work_dirs/full.onnx --images',
        run=True,
        matrix=True,
    ),
    Entry(
        r'python tools/deployment/verify.py \$CONFIG \$CKPT work_dirs/full.onnx --report work_dirs/proof$',
        run=True,
        matrix=True,
    ),
    Entry(r'mm2onnx export \$CONFIG \$CKPT --output-file work_dirs/full.onnx --verify$', run=True),
    Entry(r'mm2onnx verify \$CONFIG \$CKPT work_dirs/full.onnx$', run=True),
    Entry(
        r'mm2onnx verify \$CONFIG \$CKPT work_dirs/changed.onnx( --edited)?$', run=True, matrix=True, status=1
    ),
    Entry(
        r'mm2onnx (export|verify) \$CONFIG \$CKPT .*work_dirs/few.onnx --cfg-options', run=True, matrix=True
    ),
    Entry(
        r'python tools/onnx/graph.py diff '
        r'(\$CONFIG \$CKPT work_dirs/full|configs/demo/(yolox|mask_rcnn)_toy.py .*).onnx',
        run=True,
        matrix=True,
    ),
    Entry(
        r'python tools/onnx/graph.py diff ',
        why='placeholder',
        test=TOOLS + 'test_graph_diff.py::test_a_right_file_is_exit_status_zero',
    ),
    Entry(r'python tools/onnx/lint.py ', run=True, matrix=True),
    Entry(r'python tools/deployment/verify.py .*--engine openvino', run=True, matrix=True, needs='openvino'),
    Entry(
        r'python tools/deployment/verify.py .*CUDAExecutionProvider',
        why='gpu',
        test=TOOLS + 'test_refused_options.py::test_a_provider_that_is_not_here_is_refused_before_the_proof',
    ),
    Entry(
        r'python tools/deployment/verify.py .*--eval bbox',
        why='data set',
        test=TOOLS + 'test_streaming_loop.py::test_verify_compares_the_metrics_too',
    ),
    Entry(EXPORT + TOY + r'.*(decode|dynamic|open|raw|changed|faster_raw|full).onnx', run=True, matrix=True),
    Entry(
        EXPORT + TOY + r'.*--exporter dynamo',
        why='long',
        test='tests/matrix/test_exporters_matrix.py::test_the_dynamo_exporter_is_proven',
    ),
    # ---- the command
    Entry(
        r'mm2onnx run work_dirs/centerpoint SWEEP',
        why='placeholder',
        test=TOOLS + 'test_command.py::test_sweeps_are_drawn_from_above',
    ),
    Entry(
        r'mm2onnx run work_dirs/panoptic_fpn\.onnx data/toy_coco/val2017/000000000001\.jpg',
        why='data set',
        test=TOOLS + 'test_panoptic_loop.py::test_both_engines_have_the_same_panoptic_quality',
    ),
    Entry(
        r'python -m docs\._pages\.modules\.table yunet ',
        why='placeholder',
    ),
    Entry(
        r'python -m docs\._pages\.modules\.table yolox_nano ',
        why='placeholder',
    ),
    Entry(
        r'python -m docs\._pages\.modules\.table resnet18 ',
        why='transformers',
    ),
    Entry(
        r'python docs/_pages/forks\.py CHECKOUTS',
        why='placeholder',
    ),
    Entry(
        r'mm2onnx export projects/configs/StreamPETR/stream_petr_r50_flash_\S+ CKPT ',
        why='placeholder',
        test=TOOLS
        + 'test_streaming_export.py::test_the_deploy_contract_is_exported_and_proven_on_the_data_set',
    ),
    Entry(
        r'mm2onnx run work_dirs/streampetr INFOS',
        why='placeholder',
        test=TOOLS + 'test_streaming_page.py::test_the_program_on_the_page_gives_what_the_data_set_gives',
    ),
    Entry(
        r'mm2onnx doctor',
        why='long',
        test=TOOLS + 'test_command.py::test_the_doctor_asks_for_no_more_than_is_needed_to_run_files',
    ),
    Entry(r'mm2onnx (run|info|graph show|compare) demo/atss_toy.onnx', run=True),
    Entry(
        r'mm2onnx (export config.py circles.pth|run circles.onnx)',
        why='own family',
        test='tests/matrix/test_wheel_matrix.py::test_a_package_with_a_family_is_exported_with',
    ),
    Entry(
        r'eval "\$\(register-python-argcomplete mm2onnx',
        why='shell',
        test=TOOLS + 'test_command.py::test_a_shell_completes_commands_options_and_values',
    ),
    # ---- graphs
    Entry(r'python tools/onnx/graph.py \S+ demo/atss_toy.onnx', run=True),
    Entry(r'python tools/onnx/graph.py reduce work_dirs/half.onnx', run=True, matrix=True),
    Entry(
        r'python tools/onnx/graph.py (check-scn|show|draw) work_dirs/lidar.backbone',
        why='full size',
        test=TOOLS + 'test_graph_tool.py::test_a_good_file_keeps_the_contract',
    ),
    Entry(
        r'python tools/(deployment/pytorch2onnx.py .*--contract cuda-bevfusion|onnx/graph.py check-folder)'
        r'.* work_dirs/engine_toy',
        run=True,
        matrix=True,
    ),
    Entry(
        r'python tools/(deployment/pytorch2onnx.py .*--contract cuda-bevfusion|onnx/graph.py check-folder)',
        why='full size',
        test=PROJECTS + 'mmdet3d_plugin/test_bevfusion_cuda.py::'
        'test_the_files_are_proven_on_frames_of_other_rigs',
    ),
    Entry(
        r'python tools/deployment/pytorch2onnx.py .*BEVFusion/.*--contract autoware',
        why='placeholder',
        test=PROJECTS + 'mmdet3d_plugin/test_bevfusion_autoware.py::'
        'test_the_file_is_proven_through_the_plug_ins_in_numpy',
    ),
    Entry(
        r'python tools/deployment/pytorch2onnx.py .*StreamPETR/.*--contract autoware',
        why='placeholder',
        test=PROJECTS + 'mmdet3d_plugin/test_streampetr_autoware.py::'
        'test_the_files_are_proven_frame_by_frame_with_a_reset',
    ),
    Entry(
        r'python tools/deployment/pytorch2onnx.py .*work_dirs/autoware_toy',
        why='data set',
        test=TOOLS + 'test_lidar_loop.py::test_the_toy_for_autoware_is_proven_through_the_nodes_loop',
    ),
    Entry(
        r'python tools/deployment/check_autoware.py work_dirs/autoware_toy',
        why='data set',
        test=SELF + 'runtime/test_autoware_contract.py::'
        'test_the_command_ends_with_its_verdict_and_graph_py_knows_the_folder',
    ),
    Entry(
        r'python tools/deployment/pytorch2onnx.py .*--contract autoware',
        why='placeholder',
        test=PROJECTS + 'mmdet3d_plugin/test_centerpoint_autoware.py::'
        'test_the_folder_is_proven_through_the_nodes_loop',
    ),
    Entry(
        r'python tools/deployment/check_autoware.py FOLDER',
        why='placeholder',
        test=SELF + 'runtime/test_autoware_contract.py::'
        'test_the_command_ends_with_its_verdict_and_graph_py_knows_the_folder',
    ),
    Entry(
        r'python tools/onnx/graph.py write-tables',
        why='full size',
        test=PROJECTS + 'mmdet3d_plugin/test_bevfusion_cuda.py::'
        'test_the_tables_of_a_rig_are_written_as_the_runtime_has_them',
    ),
    # ---- the test loop
    Entry(
        r'(NNODES|GPUS)=',
        why='machines',
        test=TOOLS + 'test_test_loop.py::test_ranks_of_a_slurm_job_share_one_port',
    ),
    Entry(
        r'tools/dist_test_\w+.sh configs/demo/(solov2|decoupled_solo|mask_rcnn)_toy',
        why='data set',
        test=TOOLS + 'test_test_loop_masks.py::test_mask_ap_of_the_file_is_that_of_pytorch',
    ),
    Entry(
        r'tools/dist_test_\w+.sh configs/(demo|rtdetr)/rtdetr',
        why='data set',
        test=TOOLS + 'test_rtdetr_loop.py::test_metrics_and_detections_are_the_same_by_both_engines',
    ),
    Entry(
        r'tools/dist_test_\w+.sh projects/configs/BEVFusion/centerpoint',
        why='data set',
        test=TOOLS + 'test_lidar_loop.py::test_nds_and_map_by_both_engines_are_equal',
    ),
    Entry(
        r'tools/dist_test_\w+.sh projects/configs/BEVFusion/bevfusion',
        why='data set',
        test=PROJECTS + 'mmdet3d_plugin/test_bevfusion_data.py::'
        'test_both_engines_run_the_data_set_and_the_dump_agrees',
    ),
    Entry(
        r'tools/dist_test_\w+.sh projects/configs/Sparse4D',
        why='data set',
        test=TOOLS + 'test_sparse4d_loop.py::'
        'test_metrics_are_those_of_a_model_that_finds_and_equal_on_both_engines',
    ),
    Entry(
        r'tools/dist_test_\w+.sh projects/configs/StreamPETR',
        why='data set',
        test=TOOLS + 'test_streaming_loop.py::test_nds_and_map_by_both_engines_are_equal',
    ),
    Entry(
        r'tools/dist_test_\w+.sh projects/configs/BEVFormer',
        why='data set',
        test=TOOLS + 'test_bevformer_loop.py::test_nds_and_map_by_both_engines_are_equal',
    ),
    Entry(
        r'mm2onnx run work_dirs/bevformer_toy/',
        why='data set',
        test=TOOLS + 'test_bevformer_loop.py::test_run_draws_infos_and_says_what_stands_for_a_missing_record',
    ),
    Entry(
        r'mm2onnx quantize work_dirs/bevformer_toy ',
        why='data set',
        test=TOOLS + 'test_bevformer_loop.py::test_a_folder_of_one_graph_is_quantised_on_a_drive',
    ),
    Entry(
        r'mm2onnx verify .*bevformer_toy.int8',
        why='data set',
        test=TOOLS + 'test_bevformer_loop.py::test_a_folder_of_one_graph_is_quantised_on_a_drive',
    ),
    Entry(
        r'mm2onnx quantize work_dirs/sparse4d_toy ',
        why='data set',
        test=TOOLS + 'test_sparse4d_loop.py::test_files_in_int8_are_evaluated',
    ),
    Entry(
        r'python -m projects.toydata.bevformer',
        why='minutes',
        test=TOOLS + 'test_bevformer_loop.py::test_one_command_trains_the_toy',
    ),
    Entry(
        r'tools/dist_test_\w+.sh \$LOOP',
        why='data set',
        test=TOOLS + 'test_quantize.py::test_the_test_loop_evaluates_the_int8_file_as_it_is',
    ),
    Entry(
        r'tools/dist_test_\w+.sh configs/demo/(yolox|retinanet|deformable_detr)_toy',
        why='data set',
        test=TOOLS + 'test_dense_loop.py::test_both_engines_have_the_ap_that_the_page_states',
    ),
    Entry(
        r'tools/dist_test_\w+.sh projects/configs/(Monocular|ImVoxelNet)',
        why='data set',
        test=TOOLS + 'test_monocular_loop.py::test_both_engines_give_the_same_results_and_metrics',
    ),
    Entry(
        r'mm2onnx synthetic monocular',
        why='minutes',
        test=TOOLS + 'test_monocular_loop.py::test_both_engines_give_the_same_results_and_metrics',
    ),
    Entry(
        r'tools/dist_test_\w+.sh configs/demo/panoptic_fpn_toy',
        why='data set',
        test=TOOLS + 'test_panoptic_loop.py::test_the_quality_is_the_one_that_the_page_states',
    ),
    Entry(
        r'tools/dist_test_\w+.sh configs/demo/atss_toy',
        why='data set',
        test=TOOLS + 'test_test_loop.py::test_onnx_metrics_equal_pytorch_metrics_while_pytorch_cannot_run',
    ),
    # ---- families
    Entry(r'mm2onnx synthetic seeded configs/demo/mask_rcnn_toy.py', run=True, matrix=True),
    Entry(r'mm2onnx synthetic seeded .*bevfusion_toy_engine', run=True, matrix=True),
    Entry(r'mm2onnx synthetic seeded .*bevformer_toy', run=True, matrix=True),
    Entry(r'mm2onnx export .*bevformer_toy.py', run=True, matrix=True),
    Entry(r'mm2onnx check work_dirs/bevformer_node', run=True, matrix=True),
    Entry(r'mm2onnx synthetic seeded .*petr(v2)?_toy', run=True, matrix=True),
    Entry(r'mm2onnx export .*petr(v2)?_toy.py', run=True, matrix=True),
    Entry(r'mm2onnx synthetic seeded .*sparse4d_toy', run=True, matrix=True),
    Entry(r'mm2onnx synthetic seeded .*smoke_toy', run=True, matrix=True),
    Entry(EXPORT + r'projects/configs/Monocular/smoke_toy.py', run=True, matrix=True),
    Entry(r'mm2onnx synthetic seeded .*imvoxelnet_toy', run=True, matrix=True),
    Entry(EXPORT + r'projects/configs/ImVoxelNet/imvoxelnet_toy.py', run=True, matrix=True),
    Entry(r'mm2onnx export .*sparse4d_toy.py', run=True, matrix=True),
    Entry(EXPORT + r'configs/demo/mask_rcnn_toy.py work_dirs/mask_rcnn.pth', run=True, matrix=True),
    Entry(EXPORT + r'configs/demo/yolox_toy.py --check', run=True),
    Entry(EXPORT + r'configs/demo/(yolox|retinanet|deformable_detr)_toy.py', run=True, matrix=True),
    Entry(EXPORT + r'configs/demo/(solov2|decoupled_solo|mask_rcnn)_toy.py', run=True, matrix=True),
    Entry(EXPORT + r'configs/demo/panoptic_fpn_toy.py', run=True, matrix=True),
    Entry(r'python tools/onnx/onnx_solo.py work_dirs/solov2_full.onnx', run=True, matrix=True),
    Entry(
        EXPORT + r'projects/configs/BEVFusion/centerpoint_toy.py',
        why='data set',
        test=TOOLS + 'test_lidar_loop.py::test_an_export_is_proven_and_reported',
    ),
    Entry(
        EXPORT + r'CONFIG CHECKPOINT --output-file work_dirs/pointpillars',
        why='placeholder',
        test='tests/projects/mmdet3d_plugin/test_anchor3d.py::'
        'test_both_files_are_proven_on_sweeps_that_were_not_traced',
    ),
    Entry(
        EXPORT + r'CONFIG CHECKPOINT --output-file work_dirs/mvxnet',
        why='placeholder',
        test='tests/projects/mmdet3d_plugin/test_mvxnet.py::'
        'test_three_files_are_proven_on_frames_of_other_cameras_and_sizes',
    ),
    Entry(
        r'mm2onnx run work_dirs/mvxnet',
        why='placeholder',
        test=TOOLS + 'test_mvxnet_loop.py::test_run_draws_the_boxes_of_infos',
    ),
    Entry(
        r'tools/dist_test_\w+.sh projects/configs/MVXNet',
        why='data set',
        test=TOOLS + 'test_mvxnet_loop.py::test_both_engines_give_the_same_results_and_metrics',
    ),
    Entry(
        EXPORT + r'CONFIG CHECKPOINT --output-file work_dirs/fcos3d',
        why='placeholder',
        test='tests/projects/mmdet3d_plugin/test_monocular.py::test_a_file_of_any_size_is_proven',
    ),
    Entry(
        r'mm2onnx run work_dirs/imvoxelnet.onnx',
        why='placeholder',
        test='tests/projects/mmdet3d_plugin/test_imvoxelnet.py::'
        'test_mm2onnx_run_takes_a_file_of_cameras_and_gives_the_boxes_of_pytorch',
    ),
    Entry(
        r'mm2onnx run work_dirs/fcos3d.onnx',
        why='placeholder',
        test='tests/projects/mmdet3d_plugin/test_monocular.py::'
        'test_mm2onnx_run_takes_a_file_of_cameras_and_gives_the_boxes_of_pytorch',
    ),
    Entry(
        r'python tools/demo/lidar_demo.py SWEEP',
        why='placeholder',
        test=TOOLS + 'test_lidar_demo.py::test_onnx_alone_needs_no_checkpoint',
    ),
    Entry(
        EXPORT
        + r'(projects/configs/StreamPETR/stream_petr_toy.py|\$CONFIG \$CKPT --output-file work_dirs/stream)',
        why='data set',
        test=TOOLS
        + 'test_streaming_export.py::test_the_deploy_contract_is_exported_and_proven_on_the_data_set',
    ),
    Entry(
        EXPORT + r'(\$CONFIG|projects/configs/StreamPETR/stream_petr_r50\S+) work_dirs/stream\w*.pth',
        why='full size',
        test=TOOLS + 'test_streaming_export.py::test_the_forks_later_branch_at_opset_11',
    ),
    Entry(
        r'python tools/demo/streampetr_video.py',
        why='data set',
        test=TOOLS + 'test_streampetr_video.py::test_both_engines_are_side_by_side_and_agree',
    ),
    Entry(
        r'python tools/demo/fusion_video.py',
        why='data set',
        test=PROJECTS + 'mmdet3d_plugin/test_bevfusion_data.py'
        '::test_a_film_shows_both_engines_in_all_cameras_and_over_the_points',
    ),
    Entry(
        r'python -m mmdeploy_ext.cli.dump_app (list|show|compare)',
        why='data set',
        test=TOOLS + 'test_streaming_loop.py::test_dumps_are_listed_shown_and_compared',
    ),
    Entry(
        EXPORT + r'configs/rtdetr/rtdetr_r18vd.py work_dirs/r18vd.pth', run=True, matrix=True, small=RTDETR
    ),
    Entry(r'python tools/onnx/onnx_rtdetr.py work_dirs/r18vd.onnx', run=True, matrix=True),
    Entry(
        EXPORT + r'projects/configs/BEVFusion/bevfusion_camera_lidar',
        why='full size',
        test='tests/projects/mmdet3d_plugin/test_bevfusion_export.py::test_the_files_are_proven_on_frames_of_other_rigs',
    ),
    Entry(
        EXPORT + r'configs/rtdetr/',
        why='full size',
        test='tests/test_full_size_rtdetr.py::test_the_graph_at_another_size_is_the_original',
    ),
    Entry(
        EXPORT + r'configs/(atss/atss_coco|solov2/solov2_light_r34).py',
        why='full size',
        test='tests/test_full_size.py::test_raw_tensors_have_the_published_shapes_and_equal_mmdet',
    ),
    Entry(
        r'python tools/convert/rtdetr.py',
        why='placeholder',
        test=PROJECTS + 'mmdet_plugin/'
        'test_rtdetr_convert.py::test_ema_weights_are_taken_where_the_file_holds_them',
    ),
    Entry(
        r'python tools/convert/mmdet3.py',
        why='placeholder',
        test=TOOLS + 'test_convert_mmdet3.py::test_a_config_and_then_its_checkpoint_are_converted',
    ),
    Entry(
        r'python -m docs._pages.mmdet3.measure',
        why='mmdet 3',
        test=TOOLS + 'test_mmdet3_page.py::test_results_are_equal_only_where_all_of_them_match',
    ),
    Entry(
        r'python -m docs._pages.mmdet3.pictures',
        why='mmdet 3',
        test=TOOLS + 'test_mmdet3_page.py::test_a_picture_is_what_the_translated_pipeline_gives',
    ),
    Entry(
        r'python -m docs._pages.mmdet3.configs',
        why='mmdet 3',
        test=TOOLS + 'test_mmdet3_page.py::test_what_only_training_reads_makes_no_difference_of_configs',
    ),
    Entry(
        r'python -m docs._pages.mmdet3.page',
        why='mmdet 3',
        test=TOOLS + 'test_mmdet3_page.py::test_the_page_is_made_from_what_was_measured',
    ),
    Entry(
        r'python tools/convert/solo_wxinlong.py',
        why='placeholder',
        test=PROJECTS + 'mmdet_plugin/test_solo_convert.py::test_values_and_facts_are_carried_over',
    ),
    Entry(
        r'python tools/deployment/export_scn.py',
        why='full size',
        test=TOOLS + 'test_export_scn.py::test_a_file_is_proven_on_voxels_that_no_exporter_saw',
    ),
    Entry(
        r'python tools/quantization/scn_ptq.py',
        why='real data',
        test=TOOLS + 'test_scn_ptq.py::test_edited_ranges_are_used_and_the_damage_is_found',
    ),
    # ---- engines and figures
    Entry(
        r'python tools/deployment/onnx2tensorrt.py',
        why='long',
        test=TOOLS + 'test_onnx2tensorrt.py::test_the_toy_atss_is_built_for_a_chosen_architecture',
    ),
    Entry(
        r'python tools/deployment/quantize.py',
        why='long',
        test=TOOLS + 'test_quantize.py::test_the_report_says_what_was_done_and_what_it_costs',
    ),
    Entry(
        r'python tools/deployment/int8_table.py',
        why='long',
        test=TOOLS + 'test_int8_table.py::test_the_table_has_the_loss_and_the_size_of_each_metric',
    ),
    Entry(r'make zoo$', why='zoo'),
    Entry(
        r'python tools/analysis_tools/zoo.py ',
        why='zoo',
        test=TOOLS + 'test_zoo.py::test_a_zoo_says_of_each_config_what_became_of_it',
    ),
    Entry(
        r'python -m docs._pages.zoo.page work_dirs',
        why='zoo',
        test=TOOLS + 'test_zoo.py::test_the_pages_have_a_row_for_each_config_and_each_kind',
    ),
    Entry(
        r'python tools/analysis_tools/exporters.py',
        why='quiet',
        test=TOOLS + 'test_exporters.py::test_the_command_exports_proves_and_writes_the_table',
    ),
    Entry(
        r'python tools/analysis_tools/benchmark.py configs/(solov2|rtdetr)',
        why='quiet',
        test=SELF + 'benchmark/test_benchmark.py::test_one_run_gives_table_json_chart_and_profile',
    ),
    Entry(
        r'python tools/analysis_tools/benchmark.py \$CONFIG work_dirs/bevfusion',
        why='quiet',
        test=SELF + 'benchmark/test_sparse_benchmark.py::test_a_small_run_measures_all_and_says_so',
    ),
    Entry(
        r'python tools/analysis_tools/benchmark.py \$CONFIG work_dirs/stream_r50',
        why='quiet',
        test=SELF + 'benchmark/test_benchmark_streaming.py'
        '::test_one_run_measures_pytorch_and_both_contracts_part_by_part',
    ),
    Entry(
        r'python tools/analysis_tools/benchmark.py ',
        why='quiet',
        test=SELF + 'benchmark/test_benchmark.py::test_one_run_gives_table_json_chart_and_profile',
    ),
    # ---- data and training
    Entry(
        r'mm2onnx synthetic coco --picture',
        why='minutes',
        test=PROJECTS + 'toydata/test_coco.py::test_a_single_picture_can_be_asked_for',
    ),
    Entry(
        r'mm2onnx synthetic coco',
        why='minutes',
        test=PROJECTS + 'toydata/test_coco.py::test_a_ready_set_is_left_alone',
    ),
    Entry(
        r'mm2onnx synthetic panoptic',
        why='minutes',
        test=PROJECTS + 'toydata/test_panoptic.py::test_a_folder_of_something_else_is_left_alone',
    ),
    Entry(
        r'mm2onnx synthetic nuscenes',
        why='minutes',
        test=PROJECTS + 'toydata/test_nuscenes.py::test_a_ready_set_is_left_alone_and_another_one_is_refused',
    ),
    Entry(
        r'mm2onnx synthetic seeded-image',
        why='minutes',
        test='tests/test_full_size_solo.py::test_full_finds_mmdets_instances_at_a_size_it_never_saw',
    ),
    Entry(
        r'mm2onnx synthetic seeded',
        why='minutes',
        test='tests/test_full_size.py::test_raw_tensors_have_the_published_shapes_and_equal_mmdet',
    ),
    Entry(
        r'python tools/create_data.py',
        why='data set',
        test=PROJECTS
        + 'mmdet3d_plugin/test_nuscenes_infos.py::test_files_are_named_as_the_configs_name_them',
    ),
    Entry(
        r'python tools/train.py (configs/demo|projects/configs/(BEVFusion|Autoware))',
        why='minutes',
        test=TOOLS + 'test_train.py::test_a_run_leaves_log_config_and_checkpoint_and_evaluates',
    ),
    Entry(
        r'python tools/train.py projects/configs/StreamPETR',
        why='minutes',
        test=TOOLS + 'test_train_streams.py::test_a_stream_is_trained_evaluated_and_resumed',
    ),
    Entry(
        r'python tools/model_converters/publish_model.py',
        why='published',
        test=TOOLS + 'test_train.py::test_a_published_checkpoint_is_plain_data_with_the_same_weights',
    ),
)
"""In this order."""
