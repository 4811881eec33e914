"""What goes in and comes out: models, texts, calibration crops, questions, exports."""
