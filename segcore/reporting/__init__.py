"""What a person looks at: panels, curves, the page."""
