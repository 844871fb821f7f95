"""The `data` section of SparseDrive's configs, for tests: Sparse4D's with the driver's command."""

from typing import Any

from projects.configs.nuscenes_track import track_data


def drive_data(**settings: Any) -> dict[str, Any]:
    """Return the whole `data` section; `settings` of `track_data`."""
    data = track_data(**settings)
    data['test']['type'] = 'NuScenes3DDataset'
    data['test']['pipeline'][-1]['keys'].append('gt_ego_fut_cmd')
    return data
