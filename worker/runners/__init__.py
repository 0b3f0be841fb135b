"""Runners: a job in, engine or training calls, a result out. Each joins the two sides, and knows both."""
