"""invcryo"""
