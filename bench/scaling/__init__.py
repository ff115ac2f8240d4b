"""Instances behind a proxy whose number follows their streams: what is lost, refused and out of
balance on the way, measured.
"""
