"""CornerNet and CentripetalNet: their family and graph; mmdet's own detector and heads are used."""
