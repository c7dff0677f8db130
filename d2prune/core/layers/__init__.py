"""What is known of single layers: one kind of layer a row."""
