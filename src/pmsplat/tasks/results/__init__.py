"""What verbs write: `folder` makes it whole or not at all; a file per verb, and what they share."""
