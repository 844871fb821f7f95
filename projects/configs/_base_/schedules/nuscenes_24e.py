_base_ = ['./nuscenes_60e.py']
runner = dict(max_iters=24 * 1758)
evaluation = dict(interval=24 * 1758)
