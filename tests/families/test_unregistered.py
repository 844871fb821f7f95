"""A type that nobody has registered: the refusal says where its class is, and what imports it."""

import sys

import mmdet
import pytest
from mmcv import Config
from mmdet.models import builder
from mmdet.models.backbones import ResNet
from mmdet.models.builder import BACKBONES
from torch import nn

from mmdeploy_ext.contract.registry import Registration, registered
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.unregistered import files_of_types, module_to_import, unregistered
from mmdeploy_ext.families import base
from mmdeploy_ext.families.base import find_family, load_families
from mmdeploy_ext.models.building import build_without_weights, names_of_class

BACKBONE = """
from mmdet.models import builder
from mmdet.models.builder import BACKBONES
raise RuntimeError('this file is read, not imported')

@BACKBONES.register_module()
class UserNet(object):
    pass
"""
MODEL = """
model = dict(type={detector!r}, backbone=dict(type='UserNet'),
             rpn_head=dict(type='RPNHead', nms=dict(type='nms')),
             roi_head=dict(type='StandardRoIHead', bbox_roi_extractor=dict(roi_layer=dict(type='RoIAlign'))))
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a folder with a plugin and a config, where the command runs."""
    folder = tmp_path / 'own_code' / 'nets'
    folder.mkdir(parents=True)
    (tmp_path / 'configs').mkdir()
    (folder / '__init__.py').write_text('from .user_net import UserNet\n')
    (folder / 'user_net.py').write_text(BACKBONE)
    (folder / 'copy_of_it.py').write_text('class UserNet:\n    """Not registered."""\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(repository, detector='MaskRCNN'):
    path = repository / 'configs' / 'own.py'
    path.write_text(MODEL.format(detector=detector))
    return Config.fromfile(str(path))


def test_the_refusal_names_the_file_of_the_class_and_what_imports_it(repository):
    load_families()
    said = unregistered(read(repository))
    assert "model.backbone.type='UserNet'" in said and said.endswith(' custom_imports.imports=own_code.nets')
    assert f'UserNet is in {"own_code/nets/user_net.py"}' in said
    assert 'RoIAlign' not in said and 'nms' not in said and 'own_code' not in sys.modules


def test_a_file_that_its_package_does_not_import_is_imported_itself(repository):
    folder = repository / 'own_code' / 'nets'
    (folder / '__init__.py').write_text('from .user_network import *\n')
    load_families()
    assert unregistered(read(repository)).endswith(' custom_imports.imports=own_code.nets.user_net')
    (folder / '__init__.py').write_text(BACKBONE)
    (folder / 'user_net.py').unlink()
    assert unregistered(read(repository)).endswith(' custom_imports.imports=own_code.nets')


def test_a_detector_that_nobody_registered_is_not_said_to_be_near_a_family(repository):
    with pytest.raises(ConfigError, match=r"model\.type='UserDetector'") as error:
        find_family(read(repository, 'UserDetector'))
    assert 'nearest' not in str(error.value)


def test_a_function_that_is_registered_is_found_like_a_class(repository):
    (repository / 'own_code' / 'nets' / 'user_net.py').write_text(
        '@BACKBONES.register_module()\ndef UserNet(depth=1, **settings):\n    return Net(**settings)\n'
    )
    (repository / 'own_code' / 'nets' / 'copy_of_it.py').write_text('def UserNet_of(UserNet): pass\n')
    load_families()
    said = unregistered(read(repository))
    assert 'UserNet is in own_code/nets/user_net.py' in said and 'imports=own_code.nets' in said


def test_a_copy_of_mmdet_that_cannot_be_imported_is_named_with_the_line_that_fails(repository, monkeypatch):
    copied = repository / 'mmdet' / 'models'
    copied.mkdir(parents=True)
    (copied / 'detector.py').write_text('@DETECTORS.register_module()\nclass UserDetector:\n    pass\n')
    load_families()

    def load(registration):
        raise ModuleNotFoundError("No module named 'mmdet.ops.own_ext'", name='mmdet.ops.own_ext')

    monkeypatch.setattr(Registration, 'load_family', load)
    monkeypatch.setattr(base, 'FAMILIES', base.Families())
    monkeypatch.setattr(base, 'LEFT_OUT', {})
    monkeypatch.setattr(base, 'library_failure', lambda library: base.NOT_INSTALLED)
    monkeypatch.setattr(mmdet, '__version__', '2.25.0')
    with pytest.raises(ConfigError, match='is too old for the families'):
        find_family(Config(dict(model=dict(type='OfNoFile'))))
    monkeypatch.delitem(sys.modules, 'mmdet.models')
    monkeypatch.setattr(mmdet, '__path__', [])
    with pytest.raises(ConfigError, match=r'mmdet cannot be imported: ModuleNotFound.*own_ext.*or build,'):
        find_family(read(repository, 'UserDetector'))


def test_the_line_of_a_user_that_fails_while_the_model_is_built_is_named(repository, monkeypatch):
    path = repository / 'own_net.py'
    path.write_text('class UserNet:\n    def __init__(self, **settings):\n        assert not settings\n')
    monkeypatch.syspath_prepend(repository)
    from own_net import UserNet

    monkeypatch.setitem(BACKBONES.module_dict, 'UserNet', UserNet)
    cfg = read(repository)
    cfg.model.backbone.depth = 1
    with pytest.raises(ConfigError, match=r'AssertionError: .*UserNet: +\(raised in .*own_net\.py:3\)'):
        find_family(cfg).build(cfg)


def test_a_package_of_detectors_that_cannot_be_imported_is_named_with_its_error(repository, monkeypatch):
    (repository / 'own_code' / '__init__.py').write_text('import no_such_package\n')
    monkeypatch.syspath_prepend(repository)
    outside = Registration('turned', 'own_family:Turned', library='own_code')
    monkeypatch.setattr(base, 'registered', lambda: {**registered(), 'turned': outside})
    with pytest.raises(ConfigError, match=r'own_code cannot be imported: .*no_such_package'):
        find_family(read(repository, 'UserDetector'))


def test_a_backbone_that_nobody_registered_is_named_when_the_model_is_built(repository):
    cfg = read(repository)
    family = find_family(cfg)
    with pytest.raises(ConfigError, match=r'UserNet.*own_code/nets/user_net\.py'):
        family.build(cfg)


def test_mask_heads_in_a_list_are_no_family_s_and_no_error_of_python(repository):
    cfg = read(repository)
    cfg.model = dict(type='UserDetector', mask_head=[dict(type='SOLOHead')])
    with pytest.raises(ConfigError, match=r"mask_head='SOLOHead'"):
        find_family(cfg)


def test_a_class_above_the_folder_of_the_command_is_found_in_the_checkout(repository, monkeypatch):
    (repository / '.git').mkdir()
    (repository / 'detection' / 'configs').mkdir(parents=True)
    monkeypatch.chdir(repository / 'detection')
    load_families()
    cfg = read(repository / 'detection')
    cfg.model.dqs_cfg = dict(type='nms')
    said = unregistered(cfg)
    assert 'UserNet is in own_code/nets/user_net.py: write custom_imports' in said
    assert 'nms' not in said


def test_a_class_that_is_nowhere_needs_a_module_in_custom_imports(repository):
    for path in (repository / 'own_code' / 'nets').glob('*.py'):
        path.unlink()
    with pytest.raises(ConfigError, match=r'UserDetector.*custom_imports'):
        find_family(read(repository, 'UserDetector'))
    cfg = read(repository)
    with pytest.raises(ConfigError, match=r'UserNet.*custom_imports'):
        find_family(cfg).build(cfg)


def test_a_file_outside_of_packages_is_imported_by_its_own_name(tmp_path):
    path = tmp_path / 'plugins' / 'net.py'
    path.parent.mkdir()
    path.write_text('class Net:\n    pass\nclass Network:\n    pass\n')
    assert files_of_types(tmp_path, ['Net', 'Other']) == {'Net': path}
    assert module_to_import(path, tmp_path) == 'plugins.net'


def test_a_class_behind_a_condition_is_found_as_where_mmdet_may_be_absent(tmp_path):
    (tmp_path / 'net.py').write_text('if has_mmdet:\n    class Net(Base):\n        pass\n')
    assert files_of_types(tmp_path, ['Net']) == {'Net': tmp_path / 'net.py'}


def test_a_file_at_the_root_is_a_module_of_its_own_and_a_link_to_nothing_is_passed_over(tmp_path):
    path = tmp_path / 'net.py'
    (tmp_path / '.#net.py').symlink_to('user@host.123')  # as Emacs locks a file
    (tmp_path / '__init__.py').touch()
    path.write_text('class Net:\n    pass\n')
    assert files_of_types(tmp_path, ['Net']) == {'Net': path}
    assert files_of_types(tmp_path, []) == {}
    assert module_to_import(path, tmp_path) == 'net'


@pytest.mark.parametrize('given', [dict(), dict(pretrained='nowhere/net.pth')])
def test_a_backbone_that_reads_pretrained_is_built_without_weights(monkeypatch, given):
    class Net(ResNet):
        def __init__(self, **settings):
            assert settings.pop('pretrained') is None
            super().__init__(**settings)

    monkeypatch.setitem(BACKBONES.module_dict, 'Net', Net)
    cfg = Config(dict(model=dict(type='RPN', backbone=dict(type='Net', depth=18, **given), rpn_head=None)))
    build = lambda model, test_cfg: BACKBONES.build(model.backbone)  # noqa: E731
    assert type(build_without_weights(cfg, build, 'backbone')) is Net


def test_a_backbone_that_demands_its_init_cfg_is_built_with_it_and_reads_no_file(monkeypatch):
    from mmcv.runner import _load_checkpoint

    class Net(nn.Conv2d):
        def __init__(self, init_cfg=None):
            super().__init__(1, 1, 1)
            assert 'checkpoint' in init_cfg
            self.load_state_dict(_load_checkpoint(init_cfg['checkpoint']), strict=False)

    monkeypatch.setitem(BACKBONES.module_dict, 'Net', Net)
    backbone = dict(type='Net', init_cfg=dict(type='Pretrained', checkpoint='nowhere/net.pth'))
    cfg = Config(dict(model=dict(type='RPN', backbone=backbone)))
    build = lambda model, test_cfg: BACKBONES.build(model.backbone)  # noqa: E731
    assert type(build_without_weights(cfg, build, 'backbone')) is Net
    with pytest.raises(FileNotFoundError, match='nowhere'):
        _load_checkpoint('nowhere/net.pth')
    cfg.model.backbone.init_cfg = dict(type='Pretrained')
    with pytest.raises(ConfigError, match='the model cannot be built: AssertionError'):
        build_without_weights(cfg, build, 'backbone')


def test_a_type_of_a_scope_that_nobody_has_is_named_with_its_file_and_module(repository):
    cfg = read(repository, 'own.UserDetector')
    cfg.model.backbone.type = 'own.UserNet'
    with pytest.raises(ConfigError, match=r"model\.type='own\.UserDetector'.*UserNet is in own_code"):
        find_family(cfg)
    cfg.model.type = 'MaskRCNN'
    cfg.model.roi_head.type = 'mmdet.StandardRoIHead'
    with pytest.raises(ConfigError, match=r"backbone\.type='own\.UserNet': reg.*imports=own_code.nets"):
        find_family(cfg).build(cfg)


def test_settings_of_tests_inside_and_beside_the_model_are_refused_by_name():
    cfg = Config(dict(model=dict(type='RPN', test_cfg=dict(rpn=1)), test_cfg=dict(rpn=2)))
    with pytest.raises(ConfigError, match=r': has test_cfg, beside the model, and model.test_cfg'):
        find_family(cfg)


def test_an_mmdet_without_a_registry_of_all_models_is_asked_for_detectors_alone(monkeypatch):
    monkeypatch.delattr(builder, 'MODELS')
    assert names_of_class(builder.DETECTORS, 'RPN')[:2] == ['RPN', 'RPN']
    assert names_of_class(builder.DETECTORS, 'NoDetector') == ['NoDetector']


def test_a_detector_or_head_that_is_a_function_is_of_no_class(monkeypatch):
    def own(**settings):
        raise NotImplementedError

    for registry in (builder.DETECTORS, builder.HEADS):
        monkeypatch.setitem(registry.module_dict, 'own_function', own)
    load_families()
    assert names_of_class(builder.DETECTORS, 'own_function') == ['own_function']
    model = dict(type='own_function', bbox_head=dict(type='ATSSHead'))
    assert find_family(Config(dict(model=model))).name == 'dense'  # the head tells
    for model in (dict(type='own_function'), dict(type='ATSS', bbox_head=dict(type='own_function'))):
        with pytest.raises(ConfigError, match=r'own_function.* belongs to no family'):
            find_family(Config(dict(model=model)))


def test_a_module_whose_import_is_blocked_has_no_registries(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, 'blocked', None)
    assert "type='UserNet'" in unregistered(read(repository))
