"""The postmortem as one HTML file: nothing but text and pictures made of it."""
