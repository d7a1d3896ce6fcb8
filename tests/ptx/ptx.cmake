# The CUDA kernels as nvcc compiled them, run on the CPU: PTX is translated to C++ (translate.py), linked with the host walks
# of tests/cpp and random calls (ptx_walks), and with nvcc's host code and a CUDA runtime (libtorch_ssam_cuda.so in ptx/, the
# emulated device of tests/python/test_cuda.py). `make test` asks for it where nvcc is; each source is compiled once, for
# PTX and host code.
# A new CUDA source needs its name in TORCH_SSAM_CUDA_SOURCES, a new host walk one in TORCH_SSAM_PTX_WALKS.
set(TORCH_SSAM_PTX_WALKS test_cuda_on_host test_cuda_scale_on_host test_cuda_diagonal_on_host
                         test_cuda_shards_on_host test_adamw)
set(TORCH_SSAM_PTX OFF CACHE STRING "Run the PTX of the CUDA kernels on the CPU: AUTO (where nvcc is found), ON or OFF")

if(NOT TORCH_SSAM_PTX OR NOT TORCH_SSAM_WITH_TORCH OR TORCH_SSAM_SANITIZE OR CMAKE_CROSSCOMPILING)
  return()
endif()
if(DEFINED ENV{CUDACXX})
  set(TORCH_SSAM_NVCC "$ENV{CUDACXX}" CACHE FILEPATH "nvcc")
else()
  find_program(TORCH_SSAM_NVCC nvcc)
endif()
if(NOT TORCH_SSAM_NVCC AND TORCH_SSAM_PTX STREQUAL "AUTO")
  message(STATUS "torch_ssam: no nvcc found; the PTX of the CUDA kernels is not run on the CPU")
  return()
elseif(NOT TORCH_SSAM_NVCC)
  message(FATAL_ERROR "TORCH_SSAM_PTX=ON needs nvcc >= 12.8: install the CUDA toolkit, or set CUDACXX to its nvcc.")
endif()
find_package(Python REQUIRED COMPONENTS Interpreter)

set(ptx_source "${CMAKE_CURRENT_SOURCE_DIR}/tests/ptx")
set(ptx_build "${CMAKE_CURRENT_BINARY_DIR}/ptx")
file(MAKE_DIRECTORY "${ptx_build}")
# As torch_ssam_cuda is compiled, but for the architecture.
set(ptx_flags --std=c++20 --fmad=false -O3 -DNDEBUG -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020a000000000000
              -isystem "${TORCH_SSAM_TORCH_DIR}/include" -Xcompiler -fPIC,-ffp-contract=off,-fno-math-errno)
# Bits are to be PTX's: no contraction, no assumption on aliasing or overflow; fma is an instruction.
set(ptx_machine -O1 -w -fno-strict-aliasing -fwrapv -fno-trapping-math -ffp-contract=off -fno-math-errno -fvisibility=hidden)
if("avx2" IN_LIST TORCH_SSAM_VARIANTS)
  list(APPEND ptx_machine -mfma)
endif()

# The PTX of one architecture, in ptx/NAME.ARCH.ptx; of sm_80 the host's code too, in ptx/NAME.o.
function(torch_ssam_ptx arch)
  foreach(name ${TORCH_SSAM_CUDA_SOURCES})
    set(source "${CMAKE_CURRENT_SOURCE_DIR}/csrc/ops/cuda/${name}.cu")
    set(ptx "${ptx_build}/${name}.${arch}.ptx")
    if(arch EQUAL 80)
      set(keep "${ptx_build}/keep_${name}")
      file(MAKE_DIRECTORY "${keep}")
      add_custom_command(OUTPUT "${ptx}" "${ptx_build}/${name}.o"
        COMMAND "${TORCH_SSAM_NVCC}" ${ptx_flags} -gencode arch=compute_80,code=compute_80 --keep --keep-dir "${keep}"
                -MD -MF "${ptx_build}/${name}.d" -c "${source}" -o "${ptx_build}/${name}.o"
        COMMAND ${CMAKE_COMMAND} -E copy "${keep}/${name}.ptx" "${ptx}"
        DEPENDS "${source}" DEPFILE "${ptx_build}/${name}.d" VERBATIM)
    else()
      add_custom_command(OUTPUT "${ptx}"
        COMMAND "${TORCH_SSAM_NVCC}" ${ptx_flags} -arch=compute_${arch} -ptx -MD -MF "${ptx}.d" "${source}" -o "${ptx}"
        DEPENDS "${source}" DEPFILE "${ptx}.d" VERBATIM)
    endif()
  endforeach()
endfunction()

# An object library of the kernels in these files of PTX; OPTIONS are translate.py's. TORCH_SSAM_PTX_SHADOW among the
# DEFINITIONS checks every access by shadow memory; programs of such a library say so too.
function(torch_ssam_translate library)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "PTX;OPTIONS;DEFINITIONS")
  add_library(${library} OBJECT)
  foreach(ptx ${arg_PTX})
    get_filename_component(name "${ptx}" NAME_WE)
    set(out "${ptx_build}/${library}_${name}.cpp")
    add_custom_command(OUTPUT "${out}"
      COMMAND "${Python_EXECUTABLE}" "${ptx_source}/translate.py" "${out}" "${ptx}" ${arg_OPTIONS}
      DEPENDS "${ptx}" "${ptx_source}/translate.py" "${ptx_source}/instructions.py" "${ptx_source}/mutants.py" VERBATIM)
    target_sources(${library} PRIVATE "${out}")
  endforeach()
  target_include_directories(${library} PRIVATE "${ptx_source}")
  target_compile_options(${library} PRIVATE ${ptx_machine})
  target_compile_definitions(${library} PRIVATE ${arg_DEFINITIONS})
endfunction()

# A program of a library of translated kernels and the launcher.
function(torch_ssam_ptx_program program library)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "SOURCES;DEFINITIONS")
  add_executable(${program} $<TARGET_OBJECTS:${library}> tests/ptx/launcher.cpp tests/ptx/shadow.cpp ${arg_SOURCES})
  target_compile_definitions(${program} PRIVATE ${arg_DEFINITIONS})
  if("avx2" IN_LIST TORCH_SSAM_VARIANTS)
    target_compile_definitions(${program} PRIVATE TORCH_SSAM_X86_VARIANTS)
  endif()
  target_include_directories(${program} PRIVATE csrc "${ptx_source}")
  target_link_libraries(${program} PRIVATE torch_ssam_flags GTest::gtest)
endfunction()

# --- The translator and the launcher themselves.
foreach(shadow "" _shadow)
  set(definitions $<$<STREQUAL:${shadow},_shadow>:TORCH_SSAM_PTX_SHADOW>)
  torch_ssam_translate(ptx_by_hand${shadow} PTX "${ptx_source}/data/by_hand.ptx" DEFINITIONS ${definitions})
  torch_ssam_ptx_program(ptx_launcher${shadow} ptx_by_hand${shadow} SOURCES tests/ptx/test_launcher.cpp
                         DEFINITIONS ${definitions})
  target_link_libraries(ptx_launcher${shadow} PRIVATE GTest::gtest_main)
  add_test(NAME ptx_launcher${shadow} COMMAND ptx_launcher${shadow})
  set_tests_properties(ptx_launcher${shadow} PROPERTIES LABELS ptx TIMEOUT 600)
endforeach()

# --- The host walks and random calls.
set(walks "")
foreach(name ${TORCH_SSAM_PTX_WALKS})
  list(APPEND walks tests/cpp/${name}.cpp)
endforeach()
add_library(ptx_walk_objects OBJECT ${walks} tests/ptx/test_random_launches.cpp
                                    tests/ptx/test_random_reductions.cpp tests/ptx/walks_main.cpp)
target_include_directories(ptx_walk_objects PRIVATE csrc tests/cpp)
target_compile_definitions(ptx_walk_objects PRIVATE TORCH_SSAM_PTX)
if("avx2" IN_LIST TORCH_SSAM_VARIANTS)
  target_compile_definitions(ptx_walk_objects PRIVATE TORCH_SSAM_X86_VARIANTS)
endif()
target_compile_options(ptx_walk_objects PRIVATE -O1)  # the time goes into compiling
target_link_libraries(ptx_walk_objects PRIVATE torch_ssam_flags GTest::gtest)

set(ptx_walk_sources $<TARGET_OBJECTS:ptx_walk_objects> csrc/ops/cpu/capability.cpp ${TORCH_SSAM_KERNEL_OBJECTS})

torch_ssam_ptx(80)
list(TRANSFORM TORCH_SSAM_CUDA_SOURCES REPLACE "(.+)" "${ptx_build}/\\1.80.ptx" OUTPUT_VARIABLE ptx_80)
torch_ssam_translate(ptx_kernels PTX ${ptx_80})
torch_ssam_ptx_program(ptx_walks ptx_kernels SOURCES ${ptx_walk_sources})

# Threads in their order and in any; then whether every kernel of the library ran.
set(ptx_logs "${ptx_build}/forward.log" "${ptx_build}/shuffle.log")
add_test(NAME ptx_forget_logs COMMAND ${CMAKE_COMMAND} -E rm -f ${ptx_logs})
add_test(NAME ptx_walks COMMAND ptx_walks --gtest_filter=*Cuda*)
add_test(NAME ptx_walks_shuffled COMMAND ptx_walks --gtest_filter=*Cuda*)
set_tests_properties(ptx_walks PROPERTIES ENVIRONMENT
  "TORCH_SSAM_PTX_LOG=${ptx_build}/forward.log;TORCH_SSAM_PTX_TESTS=${ptx_build}/tests.log")
set_tests_properties(ptx_walks_shuffled PROPERTIES ENVIRONMENT
  "TORCH_SSAM_PTX_LOG=${ptx_build}/shuffle.log;TORCH_SSAM_PTX_ORDER=shuffle:1;TORCH_SSAM_PTX_SEED=2")
add_test(NAME ptx_every_kernel_ran
  COMMAND "${Python_EXECUTABLE}" "${ptx_source}/kernels_ran.py" --ptx ${ptx_80} --logs ${ptx_logs})
set_tests_properties(ptx_forget_logs PROPERTIES FIXTURES_SETUP ptx_no_logs)
set_tests_properties(ptx_walks ptx_walks_shuffled PROPERTIES
  FIXTURES_REQUIRED ptx_no_logs FIXTURES_SETUP ptx_ran TIMEOUT 900)
set_tests_properties(ptx_every_kernel_ran PROPERTIES FIXTURES_REQUIRED ptx_ran)
set_tests_properties(ptx_forget_logs ptx_walks ptx_walks_shuffled ptx_every_kernel_ran PROPERTIES LABELS ptx)

# The library as the emulated device loads it: nvcc's host code, unchanged, over translated kernels and a runtime.
set(host_code "")
foreach(name ${TORCH_SSAM_CUDA_SOURCES})
  list(APPEND host_code "${ptx_build}/${name}.o")
endforeach()
set_source_files_properties(${host_code} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
add_library(ptx_cuda SHARED csrc/ops/cuda/backend.cpp tests/ptx/device_switch.cpp tests/ptx/runtime.cpp
                            tests/ptx/launcher.cpp tests/ptx/shadow.cpp
                            $<TARGET_OBJECTS:ptx_kernels> ${host_code})
add_dependencies(ptx_cuda ptx_kernels)
target_include_directories(ptx_cuda PRIVATE csrc)
target_compile_definitions(ptx_cuda PRIVATE USE_CUDA)
target_link_libraries(ptx_cuda PRIVATE torch_ssam_flags torch_ssam_libtorch torch_ssam_ops "-Wl,-Bsymbolic")
set_target_properties(ptx_cuda PROPERTIES OUTPUT_NAME torch_ssam_cuda LIBRARY_OUTPUT_DIRECTORY "${ptx_build}"
                                          SKIP_BUILD_RPATH ON)

# --- The long form (run_long.sh): the PTX of the other architectures, shadow memory, and mutants of what the walks ran.
option(TORCH_SSAM_PTX_LONG "Also the programs of make ptx-run-long" OFF)
set(TORCH_SSAM_PTX_MUTANTS 1 CACHE STRING "The seed that chooses an instruction of each kernel")
if(TORCH_SSAM_PTX_LONG)
  foreach(arch 90 100)
    torch_ssam_ptx(${arch})
    list(TRANSFORM TORCH_SSAM_CUDA_SOURCES REPLACE "(.+)" "${ptx_build}/\\1.${arch}.ptx" OUTPUT_VARIABLE ptx_other)
    torch_ssam_translate(ptx_kernels_${arch} PTX ${ptx_other})
    torch_ssam_ptx_program(ptx_walks_${arch} ptx_kernels_${arch} SOURCES ${ptx_walk_sources})
  endforeach()
  torch_ssam_translate(ptx_kernels_shadow PTX ${ptx_80} DEFINITIONS TORCH_SSAM_PTX_SHADOW)
  torch_ssam_ptx_program(ptx_walks_shadow ptx_kernels_shadow SOURCES ${ptx_walk_sources}
                         DEFINITIONS TORCH_SSAM_PTX_SHADOW)
  torch_ssam_translate(ptx_mutants PTX ${ptx_80} OPTIONS --mutants ${TORCH_SSAM_PTX_MUTANTS} --ran ${ptx_logs})
  torch_ssam_ptx_program(ptx_walks_mutants ptx_mutants SOURCES ${ptx_walk_sources})
  set_target_properties(ptx_mutants ptx_walks_mutants PROPERTIES EXCLUDE_FROM_ALL ON)  # after the walks have run
endif()
