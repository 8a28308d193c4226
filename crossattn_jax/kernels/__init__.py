"""Operations that XLA has no good form for, each with one public function that picks the code."""
