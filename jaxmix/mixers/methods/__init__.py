"""The methods: each turns feedback into weights."""
