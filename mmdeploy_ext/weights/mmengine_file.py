"""What mmengine writes into a checkpoint beside tensors and plain values; none of its code is run.

Measured with mmengine 0.10.7: of all that its Runner saves only `message_hub` names code. A `HistoryBuffer`
(the curve of a logged scalar) carries its statistics, which are pickled as `getattr(HistoryBuffer, 'mean')`.
Here both names stand for objects of ours that keep nothing: the curves are lost, and nothing that is named is
called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class LeftOut:
    """In place of an object of mmengine that no inference needs; it keeps no state."""

    def __setstate__(self, state: object) -> None:
        """Drop the state."""


def no_attribute(*_: object) -> None:
    """Stand for `getattr` of a pickle: gives nothing, whatever it is asked for."""


def mmengine_globals() -> list[Any]:
    """Return entries for `torch.serialization.safe_globals`: the names that stand for what is left out.

    Source: mmengine 0.10.7, `HistoryBuffer.__getstate__`, and `MessageHub.load_state_dict`, which says that
    files of older versions hold the whole `MessageHub`.
    """
    return [
        (LeftOut, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (LeftOut, 'mmengine.logging.message_hub.MessageHub'),
        (no_attribute, 'builtins.getattr'),
    ]


def with_class_names(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return `meta` with the names of classes as mmdet 2 keeps them, `CLASSES`; mmdet 3 has `dataset_meta`.

    Source: mmdet 3.3.0, `init_detector`: `dataset_meta` goes before `CLASSES`, its keys in any case.
    """
    dataset = meta.get('dataset_meta')
    named = {str(key).lower(): value for key, value in dataset.items()} if isinstance(dataset, dict) else {}
    return {**meta, 'CLASSES': named['classes']} if named.get('classes') else dict(meta)
