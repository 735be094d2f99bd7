# The libraries that torch loads: _C, and _cuda where MPAMATCH_CUDA is on.

# find_package(Torch) of a CUDA torch fails where no toolkit is, so Python names the folders (without importing torch).
execute_process(
    COMMAND ${MPAMATCH_PYTHON} -c "
import importlib.util, runpy, sysconfig
torch = importlib.util.find_spec('torch').submodule_search_locations[0]
print(sysconfig.get_path('include'), torch, runpy.run_path(torch + '/version.py')['__version__'], sep=';')"
    OUTPUT_VARIABLE facts OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(GET facts 0 python_include)
list(GET facts 1 torch)
list(GET facts 2 torch_version)
if(NOT EXISTS ${python_include}/Python.h)
    message(FATAL_ERROR "${python_include}/Python.h is missing: install the headers of Python (python3-dev)")
endif()
set(TORCH_INCLUDE_DIRS ${torch}/include ${torch}/include/torch/csrc/api/include)
set(TORCH_LIBRARY_DIRS ${torch}/lib)
set(TORCH_TARGET_VERSION 0x020a000000000000) # torch 2.10: the stable ABI of that version, which later ones keep

# A library knows the sources it was built from; mpamatch/ops/native.py refuses one that is older than they are.
file(GLOB_RECURSE hashed csrc/*)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${hashed} mpamatch/ops/source_hash.py)
execute_process(
    COMMAND ${MPAMATCH_PYTHON} ${CMAKE_SOURCE_DIR}/mpamatch/ops/source_hash.py
    OUTPUT_VARIABLE hashes OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
list(GET hashes 0 source_hash)
list(GET hashes 1 cuda_source_hash)
if(NOT MPAMATCH_CUDA)
    set(cuda_source_hash "")
endif()

string(REPLACE ";" " " flags "-O3;${cpp_flags}")
configure_file(csrc/build_information.cpp.in build_information.cpp)

# pybind11 (torch brings its headers) refuses to be included where TORCH_TARGET_VERSION is defined: a target of its own.
add_library(module OBJECT csrc/module.cpp)
target_include_directories(module PRIVATE csrc)
target_include_directories(module SYSTEM PRIVATE ${python_include} ${torch}/include)

# The bindings of a library: those of its operations, the same sources in both. All in one compilation: torch's headers
# take five times as long as a binding.
function(add_bindings library)
    list(TRANSFORM ARGN REPLACE "(.+)" "csrc/bindings/\\1.cpp" OUTPUT_VARIABLE sources)
    add_library(${library}_bindings OBJECT ${sources})
    target_include_directories(${library}_bindings PRIVATE csrc)
    target_include_directories(${library}_bindings SYSTEM PRIVATE ${TORCH_INCLUDE_DIRS})
    target_compile_options(${library}_bindings PRIVATE ${cpp_flags})
    target_compile_definitions(${library}_bindings PRIVATE TORCH_TARGET_VERSION=${TORCH_TARGET_VERSION})
    set_target_properties(${library}_bindings PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
endfunction()

add_bindings(_C ${cpu_operations})
add_library(_C MODULE
    ${CMAKE_BINARY_DIR}/build_information.cpp $<TARGET_OBJECTS:module> $<TARGET_OBJECTS:_C_bindings> ${cpu_objects})
target_include_directories(_C PRIVATE csrc)
set_target_properties(_C PROPERTIES PREFIX "" SUFFIX ".so")
target_link_directories(_C PRIVATE ${TORCH_LIBRARY_DIRS})
target_link_libraries(_C PRIVATE torch_cpu c10 Threads::Threads)
if(APPLE)
    target_link_options(_C PRIVATE -undefined dynamic_lookup) # Python's own symbols come from the process
endif()

if(MPAMATCH_CUDA)
    add_bindings(_cuda ${cuda_operations})
    # USE_CUDA opens the part of the stable ABI that only a CUDA build of torch has.
    target_compile_definitions(_cuda_bindings PRIVATE USE_CUDA)
    add_library(_cuda MODULE $<TARGET_OBJECTS:_cuda_bindings> $<TARGET_OBJECTS:cuda_kernels>)
    set_target_properties(_cuda PROPERTIES PREFIX "" SUFFIX ".so" LINKER_LANGUAGE CUDA CUDA_RUNTIME_LIBRARY Static)
    target_link_directories(_cuda PRIVATE ${TORCH_LIBRARY_DIRS})
    target_link_libraries(_cuda PRIVATE torch_cpu torch_cuda)
endif()
