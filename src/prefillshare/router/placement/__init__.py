"""Which workers serve a call: small rules, one a file in rules/, composed by a policy for each leg."""
