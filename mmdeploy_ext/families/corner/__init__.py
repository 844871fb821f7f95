"""CornerNet and CentripetalNet: registers their family; mmdet's own detector and heads are used."""
