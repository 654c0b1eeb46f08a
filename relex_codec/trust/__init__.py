"""How far a line may be believed: pure functions of coefficients, lines and norms, without any reading."""
