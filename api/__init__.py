"""The HTTP side: translates requests to `tandem` calls. It computes nothing and never imports torch."""
