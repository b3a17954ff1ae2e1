"""Retrieval on any interactions: one protocol, some models, their choice by validation, lists for anyone to judge."""
