# One-line habits. Everything sets itself up in ./.venv (tools/bootstrap.sh); an active PyTorch is used where there is one.
SHELL := /bin/bash
PY := .venv/bin/python
JOBS ?= $(shell nproc)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MAX_JOBS := $(JOBS)
export TORCH_SSAM_BUILD_DIR := $(CURDIR)/build/package
CXX_SOURCES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cpp/*.cpp' 'tests/cpp/*.h' 'tests/trial/*.h' 'tests/trial/*.cpp' 'tests/ptx/*.h' 'tests/ptx/*.cpp' 'examples/cpp/*.cpp' 'benchmarks/*.cpp')
# In a checkout CUDA kernels are built where the PyTorch in use has CUDA; `pip install .` builds them where nvcc is found.
export FORCE_CUDA ?= $(shell $(PY) -c "import torch; print(int(torch.version.cuda is not None))" 2>/dev/null || echo 0)
TORCH_DIR = $$($(PY) -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")

.PHONY: all help check demo test test-cpp test-python consumer stress lint format bench sanitize asan tsan valgrind coverage pre-commit trial ptx ptx-run ptx-run-long docs wheel clean build bootstrap cuda

all: build

help:                       ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

bootstrap:                  ## .venv with the pinned tools
	@tools/bootstrap.sh

# What a target uses that only root can install, and .venv. A target of its own: what make exports looks into .venv.
need-%:
	@tools/bootstrap.sh $(subst +, ,$*)

build: need-compiler        ## the Python package, in place
	@$(PY) -m pip install -q --no-build-isolation --no-deps -e . > build-package.log 2>&1 || { cat build-package.log; exit 1; }
	@rm -f build-package.log

demo: build need-images     ## the main job on real data: about 2 minutes
	$(PY) examples/python/demo.py

test: test-cpp test-python  ## all tests, C++ then Python

# What changed is built by Ninja alone; `make build` once before.
check: need-compiler        ## T="test_wrap test_math": builds what changed, runs these files or C++ programs: seconds
	@[ -f build/package/build.ninja ] || $(MAKE) build
	@cmake --build build/package --parallel $(JOBS) > build-check.log 2>&1 || { tail -60 build-check.log; exit 1; }
	@cmake --install build/package --prefix torch_ssam --component python > build-check.log 2>&1 && rm -f build-check.log
	@for name in $(T); do \
	  if [ -f tests/python/$$name.py ]; then $(PY) -m pytest -q tests/python/$$name.py || exit 1; \
	  elif [ -f tests/cpp/$$name.cpp ] && [ -f build/cpp/build.ninja ]; then \
	    cmake --build build/cpp --parallel $(JOBS) --target $$name && build/cpp/$$name --gtest_brief=1 || exit 1; \
	  elif [ -f tests/cpp/$$name.cpp ]; then echo "run make build-cpp once before $$name"; exit 1; \
	  else echo "no tests/python/$$name.py and no tests/cpp/$$name.cpp"; exit 1; fi; \
	done

CPP_TESTS = -G Ninja -DTORCH_SSAM_TORCH_DIR=$(TORCH_DIR) -DTORCH_SSAM_BUILD_TESTS=ON -DTORCH_SSAM_BUILD_EXAMPLES=ON -DTORCH_SSAM_BUILD_CUDA=OFF
build-cpp: need-compiler+tests  ## C++ tests and examples, in build/cpp
	@cmake -S . -B build/cpp $(CPP_TESTS) -DTORCH_SSAM_PTX=AUTO > build-cpp.log 2>&1 || { cat build-cpp.log; exit 1; }
	@cmake --build build/cpp --parallel $(JOBS) > build-cpp.log 2>&1 || { tail -60 build-cpp.log; exit 1; }
	@rm -f build-cpp.log

test-cpp: build-cpp         ## C++ tests
	ctest --test-dir build/cpp --output-on-failure --parallel $(JOBS)
	@[ ! -x build/cpp/count_instructions ] || $(PY) tools/check_instructions.py build/cpp/count_instructions

# The package as pip installs it: a checkout, installed editable, serves C++ projects from another folder.
build/site/.installed: $(shell git ls-files csrc cmake torch_ssam CMakeLists.txt pyproject.toml setup.py) | build
	@rm -rf build/site
	@$(PY) -m pip install -q --no-build-isolation --no-deps --target build/site . > build-site.log 2>&1 || { cat build-site.log; exit 1; }
	@rm -f build-site.log
	@touch $@

consumer: build/site/.installed  ## the C++ project of test_cpp_parity.py, outside the tree, built with the installed package
	@cd build/site && $(CURDIR)/$(PY) -c "import torch, torch_ssam as t; print(t.cmake_prefix_path, torch.utils.cmake_prefix_path, sep=';', end='')" > prefixes
	@cmake -S tests/cpp/consumer -B build/consumer -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$$(cat build/site/prefixes)" > build-consumer.log 2>&1 || { cat build-consumer.log; exit 1; }
	@cmake --build build/consumer --parallel $(JOBS) > build-consumer.log 2>&1 || { tail -60 build-consumer.log; exit 1; }
	@rm -f build-consumer.log

# Where build-cpp found nvcc, test_cuda.py runs the kernels' PTX on the CPU.
EMULATED_CUDA = $$(ls $(CURDIR)/build/cpp/ptx/libtorch_ssam_cuda.so 2>/dev/null || true)
test-python: consumer need-images  ## Python tests
	TORCH_SSAM_CPP_CONSUMER=$(CURDIR)/build/consumer TORCH_SSAM_EMULATED_CUDA=$(EMULATED_CUDA) $(PY) -m pytest -q -n $(JOBS)

# Each file multiplies its numbers by STRESS and draws others than last time: 42 are 126,000 wrong calls and over 900 kills.
STRESS ?= 42
stress: build build-cpp     ## random walks, wrong calls, damaged checkpoints and kills, STRESS times as many as in the tests
	TORCH_SSAM_STRESS=$(STRESS) $(PY) -m pytest -q -n $(JOBS) tests/python/test_state_machine.py tests/python/test_random_calls.py tests/python/test_fuzzed_state.py tests/python/test_killed.py
	TORCH_SSAM_STRESS=$(STRESS) ctest --test-dir build/cpp --output-on-failure --parallel $(JOBS) -R RandomCalls

lint: bootstrap             ## layout, types, names, which room imports which
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo
	clang-format --dry-run -Werror $(CXX_SOURCES)

format: bootstrap           ## puts layout right
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	clang-format -i $(CXX_SOURCES)

bench: build                ## ratios against peers, written to docs/benchmarks.md
	@$(PY) tools/extra.py bench | xargs $(PY) -m pip install -q --no-deps
	$(PY) benchmarks/run.py
	$(PY) -m benchmarks.scaling
	$(PY) -m benchmarks.limits

# LibTorch itself is not instrumented: ASan and UBSan see our code in it, ThreadSanitizer and valgrind run what needs none.
SANITIZED = -G Ninja -DCMAKE_BUILD_TYPE=None -DTORCH_SSAM_BUILD_TESTS=ON -DTORCH_SSAM_BUILD_CUDA=OFF -DTORCH_SSAM_TORCH_DIR=$(TORCH_DIR)
sanitize: asan tsan valgrind  ## asan, tsan and valgrind

asan: need-compiler+tests   ## C++ tests under AddressSanitizer and UBSan
	cmake -S . -B build/asan $(SANITIZED) -DCMAKE_CXX_FLAGS=-O1 -DTORCH_SSAM_SANITIZE=address,undefined
	cmake --build build/asan --parallel $(JOBS)
	ASAN_OPTIONS=detect_leaks=1 ctest --test-dir build/asan --output-on-failure

tsan: need-compiler+tests   ## the tests without LibTorch, kernels and simulator, under ThreadSanitizer
	cmake -S . -B build/tsan $(SANITIZED) -DCMAKE_CXX_FLAGS=-O1 -DTORCH_SSAM_WITH_TORCH=OFF -DTORCH_SSAM_SANITIZE=thread
	cmake --build build/tsan --parallel $(JOBS)
	ctest --test-dir build/tsan --output-on-failure

# Not the trial of the noise: a statistic over 10^6 values finds no memory error and takes valgrind an hour.
valgrind: need-compiler+tests+valgrind  ## the tests without LibTorch under valgrind: reads of uninitialised memory, leaks
	cmake -S . -B build/valgrind $(SANITIZED) "-DCMAKE_CXX_FLAGS=-O2 -g1" -DTORCH_SSAM_WITH_TORCH=OFF
	cmake --build build/valgrind --parallel $(JOBS)
	set -e; for test in math storage kernels theory simulate; do \
	  valgrind -q --error-exitcode=1 --leak-check=full build/valgrind/test_$$test --gtest_brief=1; \
	done

# Without test_signals.py: it strikes at every line by the trace function that coverage counts by.
# Not counted: bodies of CUDA kernels run on the CPU count, kernels themselves cannot; processes that tests start.
coverage: build consumer need-tests  ## lines of Python and C++ that the tests run, in build/coverage; what they miss is printed
	@$(PY) tools/extra.py coverage | xargs $(PY) -m pip install -q
	TORCH_SSAM_CPP_CONSUMER=$(CURDIR)/build/consumer $(PY) -m pytest -q -n $(JOBS) --cov --cov-report=term-missing:skip-covered \
	  --cov-report=html:build/coverage/python --ignore=tests/python/test_signals.py
	cmake -S . -B build/coverage/cpp $(SANITIZED) "-DCMAKE_CXX_FLAGS=-O1 --coverage -fprofile-update=atomic"
	cmake --build build/coverage/cpp --parallel $(JOBS)
	ctest --test-dir build/coverage/cpp --output-on-failure --parallel $(JOBS) -LE consumer
	mkdir -p build/coverage/lines
	$(PY) -m gcovr --root . --filter csrc/ --merge-lines --txt - --html-details build/coverage/lines/index.html build/coverage/cpp

pre-commit: bootstrap       ## the hooks of .pre-commit-config.yaml over all files
	$(PY) -m pre_commit run --all-files

trial: need-compiler+tests  ## the noise on trial: 10^9 values, dieharder and TestU01, the bits of clang and AArch64; hours
	tools/noise_trial.sh

ptx: bootstrap              ## CUDA kernels: registers, spills, 16-byte accesses, machine code, docs/cuda_kernels.md; needs nvcc
	@$(PY) tools/extra.py ptx | xargs $(PY) -m pip install -q --no-deps
	$(PY) tools/kernels_page.py --jobs $(JOBS)

PTX_PROGRAMS = ptx_launcher ptx_launcher_shadow ptx_walks ptx_cuda
ptx-run: build need-tests   ## the CUDA kernels' PTX on the CPU, bit for bit: every kernel, test_cuda.py; needs nvcc
	@cmake -S . -B build/cpp $(CPP_TESTS) -DTORCH_SSAM_PTX=ON > build-cpp.log 2>&1 || { tail -20 build-cpp.log; exit 1; }
	@cmake --build build/cpp --parallel $(JOBS) --target $(PTX_PROGRAMS) > build-cpp.log 2>&1 || { tail -60 build-cpp.log; exit 1; }
	@rm -f build-cpp.log
	ctest --test-dir build/cpp --output-on-failure --parallel $(JOBS) -L ptx
	TORCH_SSAM_EMULATED_CUDA=$(EMULATED_CUDA) $(PY) -m pytest -q -n $(JOBS) tests/python/test_cuda.py tests/python/test_ptx_translator.py

ptx-run-long: ptx-run       ## more calls and orders, sm_90 and sm_100, special values, junk, shadow memory, mutants: half an hour
	@cmake -S . -B build/cpp -DTORCH_SSAM_PTX_LONG=ON > /dev/null
	@cmake --build build/cpp --parallel $(JOBS) --target ptx_walks_90 ptx_walks_100 ptx_walks_shadow > build-cpp.log 2>&1 || { tail -60 build-cpp.log; exit 1; }
	@rm -f build-cpp.log
	PYTHON=$(CURDIR)/$(PY) tests/ptx/run_long.sh build/cpp $(JOBS)

cuda: build                 ## tests and benchmark on a GPU; fails where there is none
	FAIL_WITHOUT_CUDA=1 $(PY) -m pytest -q tests/python/test_cuda.py tests/python/test_cuda_registration.py
	FAIL_WITHOUT_CUDA=1 $(PY) benchmarks/cuda_step.py --write

docs: build need-doxygen    ## the site, in docs/_build/html
	@$(PY) tools/extra.py docs | xargs $(PY) -m pip install -q
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html

# The versions of PyTorch that the wheel is tried under: 2.14.1 and 2.10.0 bring CUDA 13's and 12.8's, 13 GB of downloads.
WHEEL_TORCH ?= 2.13.0 2.14.1 2.10.0
wheel: need-compiler        ## sdist and wheel in dist/, tried in empty environments beside WHEEL_TORCH's versions of PyTorch
	@$(PY) tools/extra.py wheel | xargs $(PY) -m pip install -q
	$(if $(filter file,$(origin FORCE_CUDA)),env -u FORCE_CUDA) tools/make_wheel.sh $(PY)
	PYTHON=$(PY) tools/check_wheel.sh $(WHEEL_TORCH)

clean:                      ## everything that was built
	rm -rf build out dist torch_ssam/lib torch_ssam/_C*.so *.egg-info
