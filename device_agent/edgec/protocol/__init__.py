"""What a device and its fleet say to each other over MQTT: topics, messages and the link."""
