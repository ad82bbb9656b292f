"""What tests of judgement share: scores to judge, verdicts on them, published figures."""
