"""From a fitted law to the mixture to train on."""
