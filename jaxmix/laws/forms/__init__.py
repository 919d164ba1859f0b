"""The formulas and regressors that predict losses."""
