"""Sections of the page that a study needs beside the plain ones, each where its records exist."""
