test: ## all tests
	cargo test
