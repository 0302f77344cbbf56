"""What makes a model smaller before it is stored: functions from a spec to a spec, which can follow one another."""
